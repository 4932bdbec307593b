//! The answers of System One.

use serde_json::{Map, Value};

use super::answer::{LabelProbabilities, usage};
use super::input::value_text;
use super::question::DecisionTask;
use crate::chat::ContinuationScores;
use crate::error::{Error, Result};
use crate::openai::decisions::{
    SystemOneAnswer, SystemOneKind, SystemOneQuestion, SystemOneRequest, SystemOneResponse,
};

/// The response to a System One request, whose questions [`DecisionTask::from_system_one`] has read.
///
/// # Errors
/// When a number cannot be written as JSON.
pub fn system_one_response(
    request: &SystemOneRequest,
    (task, questions): (&DecisionTask, &[SystemOneQuestion]),
    model: &str,
    scores: &ContinuationScores,
) -> Result<SystemOneResponse> {
    let mut answers = Map::new();
    let labeled = task.questions.iter().zip(&scores.logprobs);
    for ((name, question), (labeled, logprobs)) in request.questions.keys().zip(questions).zip(labeled) {
        let answer = answer(question, &labeled.labels, &LabelProbabilities::new(logprobs));
        let answer = serde_json::to_value(answer)
            .map_err(|e| Error::internal(format!("an answer cannot be written as JSON: {e}")))?;
        answers.insert(name.clone(), answer);
    }
    Ok(SystemOneResponse { model: model.to_owned(), answers, usage: usage(scores) })
}

fn answer(question: &SystemOneQuestion, labels: &[String], found: &LabelProbabilities) -> SystemOneAnswer {
    let (confidence, outside_mass) = (found.confidence(), found.outside_mass);
    let probabilities = || -> Map<String, Value> {
        let pairs = labels.iter().zip(&found.relative);
        pairs.map(|(label, &probability)| (label.clone(), Value::from(probability))).collect()
    };
    match question.kind {
        SystemOneKind::Noul => {
            SystemOneAnswer::Noul { noul: found.relative.first().copied().unwrap_or_default(), outside_mass }
        }
        SystemOneKind::Choice => SystemOneAnswer::Choice {
            choice: labels.get(found.likeliest()).cloned().unwrap_or_default(),
            confidence,
            probabilities: probabilities(),
            outside_mass,
        },
        SystemOneKind::Score => {
            let levels = question.criteria.as_ref().and_then(Value::as_array).into_iter().flatten();
            let legend = labels.iter().cloned().zip(levels.map(|level| Value::from(value_text(level))));
            SystemOneAnswer::Score {
                score: found.mean(),
                legend: legend.collect(),
                confidence,
                probabilities: probabilities(),
                outside_mass,
            }
        }
    }
}
