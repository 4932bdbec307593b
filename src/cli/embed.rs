//! `embed`: vectors of texts, as JSON lines or as a NumPy array.

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write, stdout};
use std::ops::Range;
use std::path::Path;
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::{Value, json};

use super::connect::Endpoint;
use super::executor::Executor;
use super::npy;
use super::output::{Output, cannot_print};
use super::progress::ItemProgress;
use super::stdin::given_or_piped;
use crate::config::{Args, EmbedArgs, TextPurpose, VectorFormat};
use crate::error::{Error, Kind, Result};
use crate::registry::ModelKind;
use crate::telemetry;

/// Most texts of a request: enough for the server to fill its batches, and few enough to see progress.
const BATCH_TEXTS: usize = 256;

/// Most bytes of the texts of a request, unless one text has more; a quarter of what a body may have.
const BATCH_BYTES: usize = 512 << 10;

/// A line of the output.
#[derive(Serialize)]
struct VectorLine<'a> {
    index: usize,
    text: &'a str,
    embedding: &'a [f32],
}

/// Embeds the texts of the arguments or of stdin, and returns the process's exit code.
///
/// # Errors
/// When the model cannot be used, a text is refused, or the vectors cannot be written.
pub fn run(args: EmbedArgs) -> Result<ExitCode> {
    let texts = given_or_piped(&args.texts, "embed", "texts")?;
    if args.format == VectorFormat::Npy && args.output.is_none() && stdout().is_terminal() {
        let message = "npy is a binary format: write it to a file with --output FILE, or into a pipe";
        Args::exit_with_usage("embed", message);
    }
    // A file that cannot be written must not cost the work.
    let mut out = open(args.output.as_deref())?;
    Executor::command(async {
        let endpoint = Endpoint::open(&args.client, ModelKind::Embedding).await?;
        match args.format {
            VectorFormat::Jsonl => {
                embed(&endpoint, &args, &texts, |index, embedding| {
                    let line = VectorLine { index, text: &texts[index], embedding: &embedding };
                    // Numbers and strings can always be serialized.
                    let line = serde_json::to_string(&line).unwrap_or_default();
                    writeln!(out, "{line}").map_err(cannot_print)
                })
                .await?;
            }
            VectorFormat::Npy => {
                let mut vectors = Vec::with_capacity(texts.len());
                embed(&endpoint, &args, &texts, |_, embedding| {
                    vectors.push(embedding);
                    Ok(())
                })
                .await?;
                let n_columns = vectors.first().map_or(0, Vec::len);
                let n_rows = vectors.len();
                npy::write_f32(&mut out, n_rows, n_columns, vectors.into_iter().flatten())
                    .map_err(cannot_print)?;
            }
        }
        out.flush().map_err(cannot_print)
    })
}

/// The file at `path`, or stdout.
fn open(path: Option<&Path>) -> Result<Box<dyn Write>> {
    let Some(path) = path else { return Ok(Box::new(BufWriter::new(Output::new()))) };
    let file = File::create(path)
        .map_err(|e| Error::new(Kind::Config, format!("cannot write --output {}: {e}", path.display())))?;
    Ok(Box::new(BufWriter::new(file)))
}

/// Embeds the texts in batches, and hands each vector with its index to `take`, in the order of the texts.
async fn embed(
    endpoint: &Endpoint,
    args: &EmbedArgs,
    texts: &[String],
    mut take: impl FnMut(usize, Vec<f32>) -> Result<()>,
) -> Result<()> {
    let mut progress = ItemProgress::start(texts.len());
    let mut n_truncated = 0;
    for batch in batches(texts) {
        let request = request(&endpoint.model, args, &texts[batch.clone()]);
        let response = endpoint.client.post(&["v1", "embeddings"], &request).await;
        let response = response.map_err(|e| match batch.len() == texts.len() {
            true => e,
            false => e.context(format!("texts {} to {}", batch.start, batch.end - 1)),
        })?;
        n_truncated += response["usage"]["truncated_inputs"].as_u64().unwrap_or_default();
        let vectors = read_vectors(&response, batch.len())?;
        for (index, embedding) in batch.clone().zip(vectors) {
            take(index, embedding)?;
        }
        progress.set(batch.end);
    }
    drop(progress);
    if n_truncated > 0 {
        telemetry::print_lines(&format!("texts too long, only their beginnings embedded: {n_truncated}"));
    }
    Ok(())
}

/// Splits texts into batches of a bounded number of texts and bytes.
fn batches(texts: &[String]) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let mut n_bytes = 0;
        let fitting = texts[start..].iter().take(BATCH_TEXTS).take_while(|text| {
            n_bytes += text.len();
            n_bytes <= BATCH_BYTES
        });
        let end = texts.len().min(start + fitting.count().max(1));
        let batch = start..end;
        start = end;
        (!batch.is_empty()).then_some(batch)
    })
}

fn request(model: &str, args: &EmbedArgs, texts: &[String]) -> Value {
    let mut request = json!({"model": model, "input": texts, "encoding_format": "base64"});
    if let Some(purpose) = args.input_type {
        request["input_type"] = match purpose {
            TextPurpose::Query => "query",
            TextPurpose::Document => "document",
        }
        .into();
    }
    if let Some(n) = args.dimensions {
        request["dimensions"] = n.into();
    }
    if args.truncate {
        request["truncate"] = true.into();
    }
    request
}

/// The vectors of a response, in the order of the texts.
///
/// # Errors
/// When there are not `n` of one length.
fn read_vectors(response: &Value, n: usize) -> Result<Vec<Vec<f32>>> {
    let items = response["data"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut vectors: Vec<Vec<f32>> = vec![Vec::new(); n];
    for item in items {
        let index = item["index"].as_u64().and_then(|index| usize::try_from(index).ok());
        let slot = index.and_then(|index| vectors.get_mut(index));
        if let (Some(slot), Some(vector)) = (slot, read_vector(&item["embedding"])) {
            *slot = vector;
        }
    }
    let n_columns = vectors.first().map_or(0, Vec::len);
    if n_columns == 0 || vectors.iter().any(|vector| vector.len() != n_columns) {
        let message = "the server did not answer with one vector for each text";
        return Err(Error::new(Kind::Unavailable, message));
    }
    Ok(vectors)
}

/// A vector in base64 or, from servers that do not know that encoding, as numbers.
fn read_vector(value: &Value) -> Option<Vec<f32>> {
    match value {
        Value::String(text) => {
            let bytes = STANDARD.decode(text).ok()?;
            let (numbers, rest) = bytes.as_chunks::<4>();
            rest.is_empty().then(|| numbers.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
        }
        Value::Array(numbers) => numbers.iter().map(|n| Some(n.as_f64()? as f32)).collect(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_bounded_and_complete() {
        let lengths = |texts: &[String]| batches(texts).map(|batch| batch.len()).collect::<Vec<_>>();
        assert!(lengths(&[]).is_empty());
        assert_eq!(lengths(&vec!["x".to_owned(); 2 * BATCH_TEXTS + 1]), [BATCH_TEXTS, BATCH_TEXTS, 1]);
        let long = "x".repeat(BATCH_BYTES / 2 + 1);
        assert_eq!(lengths(&[long.clone(), "x".to_owned(), long.clone(), long]), [2, 1, 1]);
        assert_eq!(lengths(&["x".repeat(BATCH_BYTES + 1), "x".to_owned()]), [1, 1]);
    }

    #[test]
    fn vectors_are_read_in_the_order_of_the_texts() {
        let one = STANDARD.encode([1.0f32.to_le_bytes(), (-2.0f32).to_le_bytes()].concat());
        let response = json!({"data": [
            {"index": 1, "embedding": [0.5, 1.5]}, {"index": 0, "embedding": one},
        ]});
        assert_eq!(read_vectors(&response, 2).unwrap(), [[1.0, -2.0], [0.5, 1.5]]);
        for wrong in [json!({}), json!({"data": [{"index": 0, "embedding": [1.0]}]})] {
            assert!(read_vectors(&wrong, 2).is_err(), "{wrong}");
        }
    }
}
