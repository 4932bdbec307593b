//! Wire types of `/v1/decisions`, OpenAI's, and of `/v1/systemone`, which other servers have.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::chat::Role;

/// Questions about an input.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct DecisionRequest {
    /// Id or alias of a chat model; the first one by default.
    #[serde(default)]
    #[schemars(example = &"default")]
    pub model: Option<String>,
    /// The input: a text, or messages, calls and their outputs.
    #[schemars(example = "I was charged twice and want my money back.")]
    pub input: DecisionInput,
    /// The questions, which are answered independently of each other.
    #[schemars(length(min = 1, max = 400), example = [json!({"type": "predicate", "instructions": "It is a complaint."})])]
    pub questions: Vec<DecisionQuestion>,
    /// Only requests with the same key share cached prompts.
    #[serde(default)]
    pub prompt_cache_key: Option<String>,
}

/// The input that the questions are about.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or an array of messages, calls and outputs")]
pub enum DecisionInput {
    /// A text.
    Text(String),
    /// Messages, calls of functions and custom tools, and their outputs, in order.
    Items(Vec<DecisionItem>),
}

/// A message, a call, or the output of a call.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct DecisionItem {
    /// `message` (the default), `function_call`, `function_call_output`, `custom_tool_call` or
    /// `custom_tool_call_output`.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// The author of a message.
    #[serde(default)]
    pub role: Option<Role>,
    /// The text of a message.
    #[serde(default)]
    pub content: Option<DecisionContent>,
    /// The id of a call, or the one that an output belongs to.
    #[serde(default)]
    pub call_id: Option<String>,
    /// The name of the function or tool that is called.
    #[serde(default)]
    pub name: Option<String>,
    /// The arguments of a function call.
    #[serde(default)]
    pub arguments: Option<String>,
    /// The input of a custom tool's call.
    #[serde(default)]
    pub input: Option<String>,
    /// The output of a call.
    #[serde(default)]
    pub output: Option<DecisionContent>,
    /// Fields that have no effect.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// A text, or parts whose texts are concatenated.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or an array of parts")]
pub enum DecisionContent {
    /// A text.
    Text(String),
    /// Parts.
    Parts(Vec<DecisionPart>),
}

/// A part of a content. Images are refused.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct DecisionPart {
    /// `input_text`, `output_text`, `refusal` or `input_json`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text of a text part.
    #[serde(default)]
    pub text: Option<String>,
    /// The text of a refusal.
    #[serde(default)]
    pub refusal: Option<String>,
    /// The value of an `input_json` part.
    #[serde(default)]
    pub data: Option<Value>,
}

/// A question.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct DecisionQuestion {
    /// How it is answered.
    #[serde(rename = "type")]
    pub kind: DecisionKind,
    /// Returned with the answer.
    #[serde(default)]
    pub name: Option<String>,
    /// The question, or the statement that may be true.
    pub instructions: DecisionContent,
    /// The options of a `choice`.
    #[serde(default)]
    #[schemars(length(min = 2, max = 255))]
    pub choices: Option<Vec<DecisionChoice>>,
    /// The levels of a `score`, from the lowest to the highest.
    #[serde(default)]
    #[schemars(length(min = 2, max = 255))]
    pub levels: Option<Vec<DecisionLevel>>,
    /// Fields that have no effect.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// The kind of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DecisionKind {
    /// The probability that a statement is true.
    Predicate,
    /// The choice that is right.
    Choice,
    /// The level that fits.
    Score,
}

/// One of the choices of a question.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct DecisionChoice {
    /// The choice.
    pub value: ChoiceValue,
    /// Its meaning.
    #[serde(default)]
    pub description: Option<String>,
}

/// A choice. A string and a boolean with the same text are different choices.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or a boolean")]
pub enum ChoiceValue {
    /// A string.
    Text(String),
    /// A boolean.
    Flag(bool),
}

/// A level of a score.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct DecisionLevel {
    /// Its label.
    pub label: String,
    /// Its meaning.
    #[serde(default)]
    pub description: Option<String>,
}

/// The answers.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Decision {
    /// One answer to each question, in the questions' order.
    pub answers: Vec<DecisionAnswer>,
    /// Id of the model that answered.
    pub model: String,
    /// Token counts of the request.
    pub usage: DecisionUsage,
}

/// An answer. The probabilities of its labels are relative to each other; `outside_mass` is the probability that the
/// model would have written anything else.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum DecisionAnswer {
    /// The answer to a predicate.
    Predicate {
        /// The question's name.
        name: Option<String>,
        /// The probability that the statement is true.
        probability: f64,
        /// The probability of all texts that are none of the labels.
        outside_mass: f64,
    },
    /// The answer to a choice.
    Choice {
        /// The question's name.
        name: Option<String>,
        /// The likeliest choice.
        choice: ChoiceValue,
        /// 1 if the choice is certain, 0 if all are equally likely.
        confidence: f64,
        /// The probability of each choice, in the question's order.
        probabilities: Vec<ChoiceProbability>,
        /// The probability of all texts that are none of the labels.
        outside_mass: f64,
    },
    /// The answer to a score.
    Score {
        /// The question's name.
        name: Option<String>,
        /// The mean of the levels, weighted by their probabilities; 0 is the lowest.
        score: f64,
        /// 1 if the level is certain, 0 if all are equally likely.
        confidence: f64,
        /// The probability of each level, from the lowest to the highest.
        probabilities: Vec<LevelProbability>,
        /// The probability of all texts that are none of the labels.
        outside_mass: f64,
    },
}

/// The probability of a choice.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ChoiceProbability {
    /// The choice.
    pub value: ChoiceValue,
    /// Its probability.
    pub probability: f64,
}

/// The probability of a level.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct LevelProbability {
    /// The level's label.
    pub label: String,
    /// The level's number; 0 is the lowest.
    pub value: usize,
    /// Its probability.
    pub probability: f64,
}

/// Token counts of questions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct DecisionUsage {
    /// Tokens of the input and of all questions; the input counts once.
    pub input_tokens: usize,
    /// Breakdown of `input_tokens`.
    pub input_tokens_details: DecisionInputDetails,
    /// Always 0: nothing is generated.
    pub output_tokens: usize,
    /// Breakdown of `output_tokens`.
    pub output_tokens_details: DecisionOutputDetails,
    /// The sum of both.
    pub total_tokens: usize,
}

/// Breakdown of the input tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct DecisionInputDetails {
    /// Tokens found in the prefix cache when the request came.
    pub cached_tokens: usize,
    /// The others, which are in the prefix cache now, in whole blocks.
    pub cache_write_tokens: usize,
}

/// Breakdown of the output tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct DecisionOutputDetails {
    /// Always 0.
    pub reasoning_tokens: usize,
}

/// Named questions about a state.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct SystemOneRequest {
    /// Id or alias of a chat model; the first one by default.
    #[serde(default)]
    #[schemars(example = &"default")]
    pub model: Option<String>,
    /// The state: a text, or JSON.
    #[schemars(example = "I was charged twice and want my money back.")]
    pub state: Value,
    /// The questions by name, which are answered independently of each other.
    #[schemars(extend("minProperties" = 1, "maxProperties" = 400))]
    #[schemars(with = "std::collections::BTreeMap<String, SystemOneQuestion>")]
    #[schemars(example = json!({"complaint": {"type": "noul", "instructions": "It is a complaint."}}))]
    pub questions: Map<String, Value>,
}

/// A question of System One.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct SystemOneQuestion {
    /// How it is answered.
    #[serde(rename = "type")]
    pub kind: SystemOneKind,
    /// The question, or the statement that may be true: a text, or JSON.
    pub instructions: Value,
    /// The labels: of a `choice`, an object of labels with descriptions or null, or an array of labels; of a `score`, an
    /// array of levels from the lowest to the highest; of a `noul`, optionally descriptions of `true` and `false`.
    #[serde(default)]
    pub criteria: Option<Value>,
    /// Fields that have no effect.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// The kind of a question of System One.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SystemOneKind {
    /// The probability that a statement is true.
    Noul,
    /// The label that is right.
    Choice,
    /// The level that fits.
    Score,
}

/// The answers to named questions.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct SystemOneResponse {
    /// Id of the model that answered.
    pub model: String,
    /// An answer to each question, by its name.
    #[schemars(with = "std::collections::BTreeMap<String, SystemOneAnswer>")]
    pub answers: Map<String, Value>,
    /// Token counts of the request.
    pub usage: DecisionUsage,
}

/// An answer to a question of System One. The probabilities of its labels are relative to each other; `outside_mass` is
/// the probability that the model would have written anything else.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum SystemOneAnswer {
    /// The answer to a `noul`.
    Noul {
        /// The probability that the statement is true.
        noul: f64,
        /// The probability of all texts that are none of the labels.
        outside_mass: f64,
    },
    /// The answer to a `choice`.
    Choice {
        /// The likeliest label.
        choice: String,
        /// 1 if the choice is certain, 0 if all are equally likely.
        confidence: f64,
        /// The probability of each label.
        probabilities: Map<String, Value>,
        /// The probability of all texts that are none of the labels.
        outside_mass: f64,
    },
    /// The answer to a `score`.
    Score {
        /// The mean of the levels, weighted by their probabilities; 0 is the lowest.
        score: f64,
        /// The text of each level, by its number.
        legend: Map<String, Value>,
        /// 1 if the level is certain, 0 if all are equally likely.
        confidence: f64,
        /// The probability of each level, by its number.
        probabilities: Map<String, Value>,
        /// The probability of all texts that are none of the labels.
        outside_mass: f64,
    },
}
