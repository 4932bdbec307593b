//! Questions: the texts that end their prompts, and their labels.

use std::collections::HashSet;
use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::input::{content_text, input_text, value_text};
use crate::cache::name_digest;
use crate::error::{Error, Result, quote};
use crate::openai::decisions::{
    ChoiceValue, DecisionKind, DecisionQuestion, DecisionRequest, SystemOneKind, SystemOneQuestion,
    SystemOneRequest,
};

/// OpenAI's limit of questions.
const MAX_QUESTIONS: usize = 400;

/// OpenAI's limit of choices.
const MAX_LABELS: usize = 255;

/// The labels of a statement that is true and of one that is not. They answer questions, too.
const YES_NO: [&str; 2] = ["Yes", "No"];

/// Questions about an input.
#[derive(Debug, Clone, PartialEq)]
pub struct DecisionTask {
    /// The input.
    pub input: String,
    /// The request's parameter that has it.
    pub input_param: &'static str,
    /// The questions.
    pub questions: Vec<LabeledQuestion>,
    /// A digest of the salt for the prefix cache.
    pub cache_salt: Option<String>,
    /// Paths of request fields that have no effect.
    pub ignored_fields: Vec<String>,
}

/// A question and the labels that answer it.
#[derive(Debug, Clone, PartialEq)]
pub struct LabeledQuestion {
    /// The text after the input in the prompt.
    pub text: String,
    /// The labels: different from each other, and none of them empty.
    pub labels: Vec<String>,
}

/// A label, and what it means.
type Label = (String, Option<String>);

impl DecisionTask {
    /// The questions of a request for a decision.
    ///
    /// # Errors
    /// When a question or the input is malformed, or there are too few or too many questions or labels.
    pub fn from_decision(request: &DecisionRequest) -> Result<Self> {
        check_number_of_questions(request.questions.len())?;
        let (input, mut ignored_fields) = input_text(&request.input)?;
        let mut questions = Vec::with_capacity(request.questions.len());
        for (idx, question) in request.questions.iter().enumerate() {
            let path = format!("questions[{idx}]");
            ignored_fields.extend(set_fields(&question.others, &path));
            let instructions = content_text(&question.instructions, &format!("{path}.instructions"))?;
            let labels = decision_labels(question, &path)?;
            let is_ordered = question.kind == DecisionKind::Score;
            questions.push(LabeledQuestion::new(&instructions, labels, is_ordered, &path)?);
        }
        let cache_salt = request.prompt_cache_key.as_ref().map(|key| name_digest(key.as_bytes()));
        Ok(Self { input, input_param: "input", questions, cache_salt, ignored_fields })
    }

    /// The questions of a System One request, in their order, with their types.
    ///
    /// # Errors
    /// When a question is malformed, or there are too few or too many questions or labels.
    pub fn from_system_one(request: &SystemOneRequest) -> Result<(Self, Vec<SystemOneQuestion>)> {
        check_number_of_questions(request.questions.len())?;
        let (mut ignored_fields, mut questions, mut parsed) = (Vec::new(), Vec::new(), Vec::new());
        for (name, value) in &request.questions {
            let path = format!("questions.{}", quote(name));
            let question: SystemOneQuestion = crate::openai::from_value(value.clone())
                .map_err(|e| Error::invalid(path.clone(), format!("`{path}`: {e}")))?;
            ignored_fields.extend(set_fields(&question.others, &path));
            let instructions = value_text(&question.instructions);
            let labels = system_one_labels(&question, &path)?;
            let is_ordered = question.kind == SystemOneKind::Score;
            questions.push(LabeledQuestion::new(&instructions, labels, is_ordered, &path)?);
            parsed.push(question);
        }
        let input = value_text(&request.state);
        Ok((Self { input, input_param: "state", questions, cache_salt: None, ignored_fields }, parsed))
    }
}

impl LabeledQuestion {
    /// A question at `path` of the request. `is_ordered` says whether the labels are levels.
    fn new(instructions: &str, labels: Vec<Label>, is_ordered: bool, path: &str) -> Result<Self> {
        let n_labels = labels.len();
        if !(2..=MAX_LABELS).contains(&n_labels) {
            let message = format!("`{path}` has {n_labels} labels; send from 2 to {MAX_LABELS}");
            return Err(Error::invalid(path, message));
        }
        if instructions.trim().is_empty() {
            let param = format!("{path}.instructions");
            let message = format!("`{param}` is empty; send the question, or a statement that may be true");
            return Err(Error::invalid(param, message));
        }
        let order = if is_ordered { ", from the lowest level to the highest" } else { "" };
        let mut text = format!("Question: {instructions}\n\nLabels{order}:");
        let mut known = HashSet::new();
        for (label, description) in &labels {
            if label.trim().is_empty() || !known.insert(label) {
                let what = if known.contains(label) { "occurs twice" } else { "is empty" };
                let message = format!(
                    "`{path}`: the label `{}` {what}; give each label a text of its own",
                    quote(label)
                );
                return Err(Error::invalid(path, message));
            }
            // Writing to a string never fails.
            let _ = match description {
                Some(description) => write!(text, "\n- {label}: {description}"),
                None => write!(text, "\n- {label}"),
            };
        }
        Ok(Self { text, labels: labels.into_iter().map(|(label, _)| label).collect() })
    }
}

fn check_number_of_questions(n_questions: usize) -> Result<()> {
    match n_questions {
        1..=MAX_QUESTIONS => Ok(()),
        n => Err(Error::invalid(
            "questions",
            format!("`questions` has {n} questions; send from 1 to {MAX_QUESTIONS}"),
        )),
    }
}

/// Paths of fields that are set and have no effect.
fn set_fields(fields: &Map<String, Value>, path: &str) -> Vec<String> {
    let set = fields.iter().filter(|(_, value)| !value.is_null());
    set.map(|(name, _)| format!("{path}.{name}")).collect()
}

fn yes_no(descriptions: [Option<String>; 2]) -> Vec<Label> {
    YES_NO.into_iter().map(str::to_owned).zip(descriptions).collect()
}

fn decision_labels(question: &DecisionQuestion, path: &str) -> Result<Vec<Label>> {
    let DecisionQuestion { kind, choices, levels, .. } = question;
    let missing = |field: &str| {
        Error::invalid(
            format!("{path}.{field}"),
            format!("`{path}.{field}` is missing; a question of this type needs it"),
        )
    };
    let unexpected = |field: &str| {
        let message = format!("`{path}.{field}` is for questions of another type; leave it out");
        Error::invalid(format!("{path}.{field}"), message)
    };
    match (kind, choices, levels) {
        (DecisionKind::Choice | DecisionKind::Predicate, _, Some(_)) => Err(unexpected("levels")),
        (DecisionKind::Score | DecisionKind::Predicate, Some(_), _) => Err(unexpected("choices")),
        (DecisionKind::Choice, None, _) => Err(missing("choices")),
        (DecisionKind::Score, _, None) => Err(missing("levels")),
        (DecisionKind::Predicate, None, None) => Ok(yes_no([None, None])),
        (DecisionKind::Score, None, Some(levels)) => {
            Ok(levels.iter().map(|level| (level.label.clone(), level.description.clone())).collect())
        }
        (DecisionKind::Choice, Some(choices), None) => {
            let values: Vec<&ChoiceValue> = choices.iter().map(|choice| &choice.value).collect();
            let labels = choice_labels(&values);
            Ok(labels.into_iter().zip(choices.iter().map(|choice| choice.description.clone())).collect())
        }
    }
}

/// The labels of choices. Where a string has the text of a boolean, all are written as JSON.
fn choice_labels(values: &[&ChoiceValue]) -> Vec<String> {
    let is_flag = |text: &str| {
        values.iter().any(|value| matches!(value, ChoiceValue::Flag(flag) if flag.to_string() == text))
    };
    let is_ambiguous = values.iter().any(|value| matches!(value, ChoiceValue::Text(text) if is_flag(text)));
    let label = |value: &&ChoiceValue| match value {
        ChoiceValue::Flag(flag) => flag.to_string(),
        ChoiceValue::Text(text) if is_ambiguous => Value::from(text.as_str()).to_string(),
        ChoiceValue::Text(text) => text.clone(),
    };
    values.iter().map(label).collect()
}

fn system_one_labels(question: &SystemOneQuestion, path: &str) -> Result<Vec<Label>> {
    let malformed = |expected: &str| {
        Error::invalid(format!("{path}.criteria"), format!("`{path}.criteria` must be {expected}"))
    };
    let description = |value: &Value| (!value.is_null()).then(|| value_text(value));
    match (question.kind, &question.criteria) {
        (SystemOneKind::Noul, None | Some(Value::Null)) => Ok(yes_no([None, None])),
        (SystemOneKind::Noul, Some(Value::Object(criteria))) => {
            Ok(yes_no(["true", "false"].map(|key| criteria.get(key).and_then(description))))
        }
        (SystemOneKind::Noul, Some(_)) => Err(malformed("an object with descriptions of `true` and `false`")),
        (SystemOneKind::Choice, Some(Value::Object(criteria))) => {
            Ok(criteria.iter().map(|(label, value)| (label.clone(), description(value))).collect())
        }
        (SystemOneKind::Choice, Some(Value::Array(labels))) => {
            Ok(labels.iter().map(|label| (value_text(label), None)).collect())
        }
        (SystemOneKind::Choice, _) => Err(malformed("an object of labels with their descriptions or null")),
        // The levels are described by sentences; their numbers are the labels.
        (SystemOneKind::Score, Some(Value::Array(levels))) => {
            let numbered = levels.iter().enumerate();
            Ok(numbered.map(|(number, level)| (number.to_string(), description(level))).collect())
        }
        (SystemOneKind::Score, _) => Err(malformed("an array of levels, from the lowest to the highest")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn decision(questions: Value) -> Result<DecisionTask> {
        let request = json!({"input": "x", "questions": questions, "prompt_cache_key": "k"});
        DecisionTask::from_decision(&serde_json::from_value(request).unwrap())
    }

    fn system_one(questions: Value) -> Result<DecisionTask> {
        let request = json!({"state": {"a": 1}, "questions": questions});
        DecisionTask::from_system_one(&serde_json::from_value(request).unwrap()).map(|(task, _)| task)
    }

    #[test]
    fn questions_list_their_labels() {
        let task = decision(json!([
            {"type": "predicate", "instructions": "It is late.", "mood": "good", "name": null},
            {"type": "choice", "instructions": [{"type": "input_text", "text": "Which?"}],
             "choices": [{"value": "a", "description": "the first"}, {"value": true}]},
            {"type": "choice", "instructions": "Which?", "choices": [{"value": "true"}, {"value": true}]},
            {"type": "score", "instructions": "How?", "levels": [{"label": "low"}, {"label": "high"}]},
        ]))
        .unwrap();
        let labels: Vec<&[String]> = task.questions.iter().map(|question| &question.labels[..]).collect();
        assert_eq!(labels, [["Yes", "No"], ["a", "true"], ["\"true\"", "true"], ["low", "high"]]);
        assert_eq!(task.questions[1].text, "Question: Which?\n\nLabels:\n- a: the first\n- true");
        assert!(task.questions[3].text.contains("from the lowest level to the highest:\n- low\n- high"));
        assert_eq!(task.ignored_fields, ["questions[0].mood"]);
        assert!(task.cache_salt.is_some());
    }

    #[test]
    fn system_one_questions_have_criteria() {
        let task = system_one(json!({
            "late": {"type": "noul", "instructions": "It is late.", "criteria": {"true": "after six"}},
            "which": {"type": "choice", "instructions": {"ask": 1}, "criteria": {"a": null, "b": "the second"}},
            "how": {"type": "score", "instructions": "How?", "criteria": ["low", "high"]},
        }))
        .unwrap();
        assert_eq!(task.input, "{\"a\":1}");
        let texts: Vec<&str> = task.questions.iter().map(|question| question.text.as_str()).collect();
        assert_eq!(texts[0], "Question: It is late.\n\nLabels:\n- Yes: after six\n- No");
        assert_eq!(texts[1], "Question: {\"ask\":1}\n\nLabels:\n- a\n- b: the second");
        assert!(texts[2].ends_with("\n- 0: low\n- 1: high"));
    }

    #[test]
    fn malformed_questions_are_refused_by_path() {
        let choice = |value: Value| json!({"value": value});
        for (question, param) in [
            (json!({"type": "choice", "instructions": "?"}), "questions[0].choices"),
            (json!({"type": "choice", "instructions": "?", "choices": [choice(json!("a"))]}), "questions[0]"),
            (
                json!({"type": "choice", "instructions": "?", "choices": vec![choice(json!("a")); 2]}),
                "questions[0]",
            ),
            (
                json!({"type": "choice", "instructions": "?", "choices": [choice(json!("a")), choice(json!(""))]}),
                "questions[0]",
            ),
            (json!({"type": "score", "instructions": "?"}), "questions[0].levels"),
            (json!({"type": "predicate", "instructions": "?", "choices": []}), "questions[0].choices"),
            (json!({"type": "predicate", "instructions": " "}), "questions[0].instructions"),
            (
                json!({"type": "predicate", "instructions": [{"type": "input_image"}]}),
                "questions[0].instructions[0]",
            ),
        ] {
            assert_eq!(decision(json!([question])).unwrap_err().param(), Some(param), "{question}");
        }
        assert_eq!(decision(json!([])).unwrap_err().param(), Some("questions"));
        let question = json!({"type": "predicate", "instructions": "?"});
        assert!(decision(json!(vec![question.clone(); 400])).is_ok());
        assert_eq!(decision(json!(vec![question; 401])).unwrap_err().param(), Some("questions"));
        for (question, param) in [
            (json!({"type": "bool", "instructions": "?"}), "questions.q"),
            (json!({"type": "choice", "instructions": "?", "criteria": 5}), "questions.q.criteria"),
            (json!({"type": "score", "instructions": "?", "criteria": ["a"]}), "questions.q"),
        ] {
            assert_eq!(system_one(json!({"q": question})).unwrap_err().param(), Some(param), "{question}");
        }
    }
}
