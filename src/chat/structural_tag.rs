//! Structural tags: free text with parts of a given form, as XGrammar, vLLM and SGLang have them. Both forms are read:
//! a list of tags with their triggers, and a tree of formats.

use serde_json::{Map, Value, json};

use crate::error::{Error, Result, quote};
use crate::inference::Grammar;

/// The deepest nesting of a tree.
const MAX_DEPTH: usize = 20;

/// Most tags of a request.
const MAX_TAGS: usize = 256;

/// The grammar of a structural tag. `param` is its name in the request.
///
/// # Errors
/// When it is malformed, or has a part that cannot be enforced; the message names it.
pub fn structural_tag_grammar(param: &str, tag: &Value) -> Result<Grammar> {
    let mut rules = TagRules { param, rules: Vec::new(), parts: Vec::new(), n_tags: 0 };
    let is_set = |name: &str| tag.get(name).is_some_and(|value| !value.is_null());
    let body = match (is_set("format"), is_set("structures") || is_set("triggers")) {
        (true, false) => rules.format(&tag["format"], "format", true, 0)?,
        (false, true) => rules.listed_tags(tag)?,
        _ => {
            let message = format!(
                "`{param}` needs either `format`, or `structures` and `triggers`, of a structural tag"
            );
            return Err(Error::invalid(param, message));
        }
    };
    let TagRules { rules, parts, .. } = rules;
    Ok(Grammar::Lark { rules: format!("start: {body}\n{ANY}\n{}", rules.join("\n")), parts })
}

/// The terminal of any text.
const ANY: &str = "ANY: /[^\\x00]*/";

/// The rules of a structural tag.
struct TagRules<'a> {
    param: &'a str,
    rules: Vec<String>,
    parts: Vec<(String, Grammar)>,
    n_tags: usize,
}

/// Tags in free text, each of which begins with a trigger.
struct TriggeredTags<'a> {
    triggers: Vec<&'a str>,
    /// The beginning of each tag, and the rule of its rest.
    tags: Vec<(String, String)>,
    excludes: Vec<&'a str>,
    at_least_one: bool,
    stop_after_first: bool,
}

impl TagRules<'_> {
    fn error<T>(&self, path: &str, message: &str) -> Result<T> {
        Err(Error::invalid(self.param, format!("`{path}` of the structural tag {message}")))
    }

    /// Defines a rule; returns its name.
    fn rule(&mut self, attributes: &str, body: &str) -> String {
        let name = format!("tag_{}", self.rules.len());
        self.rules.push(format!("{name}{attributes}: {body}"));
        name
    }

    /// Defines a terminal; returns its name.
    fn terminal(&mut self, body: &str) -> String {
        let name = format!("TAG_{}", self.rules.len());
        self.rules.push(format!("{name}: {body}"));
        name
    }

    /// Adds a grammar of its own; returns the reference to it.
    fn part(&mut self, grammar: Grammar) -> String {
        let name = format!("tag_part_{}", self.parts.len());
        let reference = format!("@{name}");
        self.parts.push((name, grammar));
        reference
    }

    fn text<'b>(&self, fields: &'b Map<String, Value>, path: &str, name: &str) -> Result<&'b str> {
        match fields.get(name) {
            Some(Value::String(text)) => Ok(text),
            _ => self.error(&format!("{path}.{name}"), "must be a string"),
        }
    }

    fn texts<'b>(&self, fields: &'b Map<String, Value>, path: &str, name: &str) -> Result<Vec<&'b str>> {
        let texts = match fields.get(name) {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Array(texts)) => texts.iter().map(Value::as_str).collect::<Option<Vec<&str>>>(),
            Some(_) => None,
        };
        match texts {
            Some(texts) if texts.iter().all(|text| !text.is_empty()) => Ok(texts),
            _ => self.error(&format!("{path}.{name}"), "must be an array of strings that are not empty"),
        }
    }

    fn flag(&self, fields: &Map<String, Value>, path: &str, name: &str) -> Result<bool> {
        match fields.get(name) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => self.error(&format!("{path}.{name}"), "must be true or false"),
        }
    }

    fn list<'b>(&self, fields: &'b Map<String, Value>, path: &str, name: &str) -> Result<&'b [Value]> {
        match fields.get(name) {
            Some(Value::Array(items)) if !items.is_empty() => Ok(items),
            _ => self.error(&format!("{path}.{name}"), "must be an array of at least one item"),
        }
    }

    fn object<'b>(&self, value: &'b Value, path: &str) -> Result<&'b Map<String, Value>> {
        match value {
            Value::Object(fields) => Ok(fields),
            _ => self.error(path, "must be an object"),
        }
    }

    /// Refuses fields that are not known: they might say what the text must be.
    fn check_fields(&self, fields: &Map<String, Value>, path: &str, known: &[&str]) -> Result<()> {
        let unknown = fields
            .iter()
            .find(|(name, value)| !value.is_null() && !known.contains(&name.as_str()) && *name != "type");
        match unknown {
            None => Ok(()),
            Some((name, _)) => {
                self.error(&format!("{path}.{}", quote(name)), "is not supported; leave it out")
            }
        }
    }

    /// The form with `structures` and `triggers`.
    fn listed_tags(&mut self, tag: &Value) -> Result<String> {
        let fields = self.object(tag, self.param)?;
        let triggers = self.texts(fields, self.param, "triggers")?;
        if triggers.is_empty() {
            return self.error("triggers", "must have at least one string");
        }
        let mut tags = Vec::new();
        for (idx, structure) in self.list(fields, self.param, "structures")?.iter().enumerate() {
            let path = format!("structures[{idx}]");
            let fields = self.object(structure, &path)?;
            self.check_fields(fields, &path, &["begin", "schema", "end"])?;
            let schema = fields.get("schema").cloned().unwrap_or_else(|| json!({"type": "object"}));
            let schema = self.part(Grammar::JsonSchema(schema));
            let end = literal(self.text(fields, &path, "end")?);
            let rest = self.rule("", &format!("{schema} {end}"));
            tags.push((self.text(fields, &path, "begin")?.to_owned(), rest));
        }
        let free = TriggeredTags {
            triggers,
            tags,
            excludes: Vec::new(),
            at_least_one: false,
            stop_after_first: false,
        };
        self.triggered_tags(free, "structures")
    }

    /// The texts of a format, as part of a rule. `is_last` says whether nothing follows it.
    fn format(&mut self, format: &Value, path: &str, is_last: bool, depth: usize) -> Result<String> {
        if depth > MAX_DEPTH {
            return self.error(path, &format!("is nested deeper than {MAX_DEPTH} levels"));
        }
        let fields = self.object(format, path)?;
        let kind = self.text(fields, path, "type")?;
        let inner = |name: &str| format!("{path}.{name}");
        match kind {
            "const_string" => {
                self.check_fields(fields, path, &["value"])?;
                Ok(literal(self.text(fields, path, "value")?))
            }
            "json_schema" => {
                // The style of plain JSON is that of every other grammar here.
                self.check_fields(fields, path, &["json_schema"])?;
                match fields.get("json_schema") {
                    Some(schema) => Ok(self.part(Grammar::JsonSchema(schema.clone()))),
                    None => self.error(&inner("json_schema"), "is missing"),
                }
            }
            "regex" => {
                self.check_fields(fields, path, &["pattern"])?;
                Ok(self.part(Grammar::Regex(self.text(fields, path, "pattern")?.to_owned())))
            }
            "grammar" => {
                self.check_fields(fields, path, &["grammar"])?;
                Ok(self.part(Grammar::from_rules(self.text(fields, path, "grammar")?.to_owned())))
            }
            "sequence" | "or" => {
                self.check_fields(fields, path, &["elements"])?;
                let elements = self.list(fields, path, "elements")?;
                let mut bodies = Vec::new();
                for (idx, element) in elements.iter().enumerate() {
                    let is_last = is_last && (kind == "or" || idx + 1 == elements.len());
                    bodies.push(self.format(
                        element,
                        &format!("{path}.elements[{idx}]"),
                        is_last,
                        depth + 1,
                    )?);
                }
                Ok(self.rule("", &bodies.join(if kind == "or" { " | " } else { " " })))
            }
            "optional" | "star" | "plus" => {
                self.check_fields(fields, path, &["content"])?;
                let content = fields.get("content").unwrap_or(&Value::Null);
                let content = self.format(content, &inner("content"), false, depth + 1)?;
                let content = self.rule("", &content);
                let operator = match kind {
                    "optional" => "?",
                    "star" => "*",
                    _ => "+",
                };
                Ok(self.rule("", &format!("{content}{operator}")))
            }
            "any_text" => {
                self.check_fields(fields, path, &["excludes"])?;
                let excludes = self.texts(fields, path, "excludes")?;
                if !is_last {
                    return self.error(path, "has free text before other text; put it into a `tag`");
                }
                let text = self.text_without(&excludes);
                Ok(self.rule("", &text))
            }
            "tag" => {
                let (begin, rest) = self.tag(format, path, depth)?;
                Ok(self.rule("", &format!("{} {rest}", literal(&begin))))
            }
            "triggered_tags" => {
                self.check_fields(
                    fields,
                    path,
                    &["triggers", "tags", "excludes", "at_least_one", "stop_after_first"],
                )?;
                let tags = self.tags(fields, path, depth)?;
                let tags = TriggeredTags {
                    triggers: self.texts(fields, path, "triggers")?,
                    excludes: self.texts(fields, path, "excludes")?,
                    at_least_one: self.flag(fields, path, "at_least_one")?,
                    stop_after_first: self.flag(fields, path, "stop_after_first")?,
                    tags,
                };
                if !is_last && !tags.stop_after_first {
                    return self.error(path, "has free text before other text; set `stop_after_first`");
                }
                self.triggered_tags(tags, path)
            }
            "tags_with_separator" => {
                self.check_fields(fields, path, &["tags", "separator", "at_least_one", "stop_after_first"])?;
                let tags = self.tags(fields, path, depth)?;
                let any: Vec<String> =
                    tags.iter().map(|(begin, rest)| format!("{} {rest}", literal(begin))).collect();
                let any = self.rule("", &any.join(" | "));
                let more = match self.flag(fields, path, "stop_after_first")? {
                    true => String::new(),
                    false => format!("({} {any})*", literal(self.text(fields, path, "separator")?)),
                };
                let all = self.rule("", &format!("{any} {more}"));
                let operator = if self.flag(fields, path, "at_least_one")? { "" } else { "?" };
                Ok(self.rule("", &format!("{all}{operator}")))
            }
            kind => self.error(&inner("type"), &format!("`{}` is not supported", quote(kind))),
        }
    }

    fn tags(
        &mut self,
        fields: &Map<String, Value>,
        path: &str,
        depth: usize,
    ) -> Result<Vec<(String, String)>> {
        let mut tags = Vec::new();
        for (idx, tag) in self.list(fields, path, "tags")?.iter().enumerate() {
            tags.push(self.tag(tag, &format!("{path}.tags[{idx}]"), depth + 1)?);
        }
        Ok(tags)
    }

    /// The beginning of a tag, and the rule of its rest.
    fn tag(&mut self, tag: &Value, path: &str, depth: usize) -> Result<(String, String)> {
        self.n_tags += 1;
        if self.n_tags > MAX_TAGS {
            return self.error(path, &format!("is one of more than {MAX_TAGS} tags"));
        }
        let fields = self.object(tag, path)?;
        self.check_fields(fields, path, &["begin", "content", "end"])?;
        let begin = self.text(fields, path, "begin")?.to_owned();
        let ends = match fields.get("end") {
            Some(Value::Array(_)) => self.texts(fields, path, "end")?,
            _ => vec![self.text(fields, path, "end")?],
        };
        let content = fields.get("content").unwrap_or(&Value::Null);
        let path = format!("{path}.content");
        let is_free = content.get("type").is_some_and(|kind| kind == "any_text");
        let ends_in_nothing = ends.iter().any(|end| end.is_empty());
        let rest = if is_free && !ends_in_nothing {
            // Free text up to the first of the ends.
            let content = self.object(content, &path)?;
            self.check_fields(content, &path, &["excludes"])?;
            let mut free = "ANY".to_owned();
            let excludes = self.texts(content, &path, "excludes")?;
            if !excludes.is_empty() {
                free = format!("({})", self.text_without(&excludes));
            }
            self.rule("[lazy]", &format!("{free} ({})", alternatives(&ends)))
        } else {
            let content = self.format(content, &path, ends_in_nothing, depth + 1)?;
            self.rule("", &format!("{content} ({})", alternatives(&ends)))
        };
        Ok((begin, rest))
    }

    /// Free text, in which a tag follows each trigger.
    fn triggered_tags(&mut self, free: TriggeredTags, path: &str) -> Result<String> {
        let TriggeredTags { triggers, tags, excludes, at_least_one, stop_after_first } = free;
        if triggers.is_empty() {
            return self.error(&format!("{path}.triggers"), "must have at least one string");
        }
        let mut followed: Vec<Vec<String>> = vec![Vec::new(); triggers.len()];
        for (begin, rest) in &tags {
            // The text up to a trigger is free, so a tag begins with the first trigger that it begins with.
            let found = triggers
                .iter()
                .enumerate()
                .filter_map(|(idx, trigger)| Some((idx, begin.strip_prefix(trigger)?)));
            match found.max_by_key(|(_, begin)| begin.len()) {
                Some((idx, begin)) => followed[idx].push(format!("{} {rest}", literal(begin))),
                None => {
                    let message =
                        format!("has a tag, `{}`, that begins with none of the triggers", quote(begin));
                    return self.error(path, &message);
                }
            }
        }
        let never: Vec<&str> = triggers.iter().chain(&excludes).copied().collect();
        let free = if excludes.is_empty() {
            "ANY".to_owned()
        } else {
            format!("({})", self.text_without(&excludes))
        };
        let mut any = Vec::new();
        for (trigger, followed) in triggers.iter().zip(followed) {
            let lead = self.rule("[lazy]", &format!("{free} {}", literal(trigger)));
            if followed.is_empty() {
                // No tag begins with it, so it must not be written.
                continue;
            }
            any.push(self.rule("", &format!("{lead} ({})", followed.join(" | "))));
        }
        let any = self.rule("", &any.join(" | "));
        let text = self.text_without(&never);
        let text = self.terminal(&text);
        let body = match (at_least_one, stop_after_first) {
            (false, false) => format!("{any}* {text}"),
            (true, false) => format!("{any}+ {text}"),
            (false, true) => format!("{any} | {text}"),
            (true, true) => any,
        };
        Ok(self.rule("", &body))
    }

    /// Text in which none of `excluded` occurs.
    fn text_without(&mut self, excluded: &[&str]) -> String {
        if excluded.is_empty() {
            return "ANY".to_owned();
        }
        format!("ANY & ~(ANY ({}) ANY)", alternatives(excluded))
    }
}

fn alternatives(texts: &[&str]) -> String {
    texts.iter().map(|text| literal(text)).collect::<Vec<_>>().join(" | ")
}

/// A text as part of a rule.
fn literal(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(tag: Value) -> Result<(String, usize)> {
        match structural_tag_grammar("structural_tag", &tag)? {
            Grammar::Lark { rules, parts } => Ok((rules, parts.len())),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn both_forms_become_rules() {
        let (listed, n_parts) = rules(json!({
            "structures": [{"begin": "<f=a>", "schema": {}, "end": "</f>"}, {"begin": "<f=b>", "schema": {}, "end": "</f>"}],
            "triggers": ["<f="]
        }))
        .unwrap();
        assert_eq!(n_parts, 2);
        assert!(listed.contains("[lazy]: ANY \"<f=\""), "{listed}");
        assert!(listed.contains("(\"a>\" tag_0 | \"b>\" tag_1)"), "{listed}");
        let (tree, n_parts) = rules(json!({"format": {"type": "sequence", "elements": [
            {"type": "const_string", "value": "a"},
            {"type": "or", "elements": [{"type": "regex", "pattern": "b+"}, {"type": "grammar", "grammar": "root ::= \"c\""}]},
            {"type": "optional", "content": {"type": "json_schema", "json_schema": {}}},
            {"type": "tag", "begin": "<t>", "content": {"type": "any_text"}, "end": ["</t>", "\n"]},
            {"type": "tags_with_separator", "separator": ",", "at_least_one": true, "tags": [
                {"begin": "x", "content": {"type": "const_string", "value": "y"}, "end": ""}]},
            {"type": "any_text", "excludes": ["z"]},
        ]}}))
        .unwrap();
        assert_eq!(n_parts, 3, "{tree}");
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let tag = |content: Value| json!({"type": "tag", "begin": "<t>", "content": content, "end": "</t>"});
        let mut deep = json!({"type": "const_string", "value": "x"});
        for _ in 0..40 {
            deep = tag(deep);
        }
        for (format, says) in [
            (json!({"type": "qwen_xml_parameter", "json_schema": {}}), "qwen_xml_parameter"),
            (json!({"type": "token", "token": 1}), "`token`"),
            (json!({"type": "const_string", "value": 1}), "format.value"),
            (
                json!({"type": "sequence", "elements": [{"type": "any_text"}, {"type": "const_string", "value": "x"}]}),
                "elements[0]",
            ),
            (
                json!({"type": "triggered_tags", "triggers": ["["], "tags": [tag(json!({"type": "any_text"}))]}),
                "`<t>`",
            ),
            (
                json!({"type": "triggered_tags", "triggers": [], "tags": [tag(json!({"type": "any_text"}))]}),
                "triggers",
            ),
            (json!({"type": "json_schema", "json_schema": {}, "style": "xml"}), "style"),
            (json!({"type": "any_text", "exclude": ["x"]}), "format.exclude"),
            (json!("x"), "object"),
            (deep, "nested"),
        ] {
            let error = rules(json!({"format": format.clone()})).unwrap_err();
            assert_eq!(error.param(), Some("structural_tag"));
            assert!(error.to_string().contains(says), "{format}: {error}");
        }
        for tag in
            [json!({}), json!({"structures": []}), json!({"structures": [{}], "triggers": ["x"]}), json!([1])]
        {
            assert!(rules(tag.clone()).is_err(), "{tag}");
        }
    }
}
