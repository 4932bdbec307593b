//! The templates in a model's files.

use std::collections::BTreeMap;

use serde_json::Value;

/// The source of a model's templates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TemplateSource {
    /// The template for conversations without tools, and for all if it is the only one; empty if there is none.
    pub default: String,
    /// The template for conversations with tools.
    pub tool_use: Option<String>,
    /// Texts of special tokens by the names of template variables, such as `bos_token`.
    pub special_tokens: BTreeMap<String, String>,
}

impl TemplateSource {
    /// Reads a `tokenizer_config.json`: one template or a list of named ones, and every key that names a token.
    pub fn from_tokenizer_config(config: &Value) -> Self {
        let templates = &config["chat_template"];
        let named = |name: &str| {
            let template = templates.as_array()?.iter().find(|template| template["name"] == name)?;
            template["template"].as_str().map(str::to_owned)
        };
        let special_tokens = config.as_object().into_iter().flatten();
        Self {
            default: templates.as_str().map(str::to_owned).or_else(|| named("default")).unwrap_or_default(),
            tool_use: named("tool_use"),
            special_tokens: special_tokens
                .filter(|(key, _)| key.ends_with("_token"))
                // A token is a string, or an object with its properties.
                .filter_map(|(key, token)| {
                    Some((key.clone(), token.as_str().or(token["content"].as_str())?.to_owned()))
                })
                .collect(),
        }
    }

    /// Whether there is no template.
    pub fn is_empty(&self) -> bool {
        self.default.is_empty()
    }

    /// Replaces all templates by one.
    pub fn with_template(self, template: &str) -> Self {
        Self { default: template.to_owned(), tool_use: None, ..self }
    }

    /// Adds a special token, if its text is known.
    pub fn with_special_token(mut self, name: &str, text: Option<&str>) -> Self {
        self.special_tokens.extend(text.map(|text| (name.to_owned(), text.to_owned())));
        self
    }
}

impl From<&str> for TemplateSource {
    fn from(template: &str) -> Self {
        Self { default: template.to_owned(), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_tokenizer_config_has_one_template_or_named_ones() {
        let one = TemplateSource::from_tokenizer_config(&json!({"chat_template": "a"}));
        assert_eq!(one, "a".into());
        let named = json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]);
        let named = TemplateSource::from_tokenizer_config(&json!({ "chat_template": named }));
        assert_eq!((named.default.as_str(), named.tool_use.as_deref()), ("d", Some("t")));
        assert_eq!(TemplateSource::from_tokenizer_config(&json!({})), TemplateSource::default());
    }

    #[test]
    fn tokens_are_strings_or_objects() {
        let config = json!({
            "bos_token": "<s>", "eos_token": {"content": "</s>", "special": true}, "pad_token": null,
            "add_bos_token": true, "tokenizer_class": "x"
        });
        let source = TemplateSource::from_tokenizer_config(&config);
        let expected = [("bos_token", "<s>"), ("eos_token", "</s>")];
        assert_eq!(source.special_tokens, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    }
}
