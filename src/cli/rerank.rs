//! `rerank`: documents by relevance to a query, best first.

use std::io::Write;
use std::process::ExitCode;

use serde::Serialize;
use serde_json::{Value, json};

use super::connect::Endpoint;
use super::executor::Executor;
use super::output::{Output, cannot_print};
use super::stdin::given_or_piped;
use crate::config::{MAX_EMBEDDING_INPUTS, RankArgs};
use crate::error::{Error, Kind, Result};
use crate::registry::ModelKind;
use crate::telemetry;

/// A document with its score; a line of the output.
#[derive(Debug, Serialize)]
struct RankedLine<'a> {
    index: usize,
    relevance_score: f64,
    text: &'a str,
}

/// Ranks the documents of the arguments or of stdin, and returns the process's exit code.
///
/// # Errors
/// When the model cannot be used, or a document is refused.
pub fn run(args: RankArgs) -> Result<ExitCode> {
    let documents = given_or_piped(&args.documents, "rerank", "documents")?;
    Executor::command(async {
        let endpoint = Endpoint::open(&args.client, ModelKind::Reranker).await?;
        let mut ranked = Vec::with_capacity(documents.len());
        let mut n_truncated = 0;
        for (idx, chunk) in documents.chunks(MAX_EMBEDDING_INPUTS).enumerate() {
            let mut request = json!({"model": endpoint.model, "query": args.query, "documents": chunk});
            if args.truncate {
                request["truncate"] = true.into();
            }
            let response = endpoint.client.post(&["v1", "rerank"], &request).await?;
            n_truncated += response["usage"]["truncated_inputs"].as_u64().unwrap_or_default();
            ranked.extend(read_scores(&response, &documents, idx * MAX_EMBEDDING_INPUTS)?);
        }
        ranked.sort_by(|a, b| b.relevance_score.total_cmp(&a.relevance_score));
        ranked.truncate(args.top_n.map_or(usize::MAX, |n| n as usize));
        let mut out = Output::new();
        for line in &ranked {
            let line = if args.json { json_line(line) } else { text_line(line) };
            writeln!(out, "{line}").map_err(cannot_print)?;
        }
        if n_truncated > 0 {
            telemetry::print_lines(&format!(
                "{n_truncated} texts were too long; their beginnings were scored"
            ));
        }
        Ok(())
    })
}

/// The scores of a response about the documents from `start` on.
///
/// # Errors
/// When it has another form.
fn read_scores<'a>(response: &Value, documents: &'a [String], start: usize) -> Result<Vec<RankedLine<'a>>> {
    let read = |item: &Value| {
        let index = start + usize::try_from(item["index"].as_u64()?).ok()?;
        let relevance_score = item["relevance_score"].as_f64()?;
        Some(RankedLine { index, relevance_score, text: documents.get(index)? })
    };
    let results = response["results"].as_array();
    results.and_then(|results| results.iter().map(read).collect()).ok_or_else(|| {
        Error::new(Kind::Unavailable, "the server did not answer with a score for each document")
    })
}

fn json_line(line: &RankedLine) -> String {
    // Numbers and strings can always be serialized.
    serde_json::to_string(line).unwrap_or_default()
}

fn text_line(line: &RankedLine) -> String {
    format!("{:7.4}  {:>4}  {}", line.relevance_score, line.index, line.text)
}
