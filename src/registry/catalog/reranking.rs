//! The rerankers of the catalog: cross-encoders in safetensors format.
//!
//! Left out are jina's rerankers, whose repositories contain their own code: `v1` uses ALiBi position encoding, and
//! the tensors of `v2` have names and shapes unlike those of any other checkpoint.

use super::{APACHE_2, CatalogEntry, CatalogFile, MIT, file, hub, row};
use crate::registry::kind::ModelKind;

const BESIDE: &[CatalogFile] = &[file("tokenizer.json", None), file("config.json", None)];

/// A row of safetensors at the default branch of a repository.
const fn cross_encoder(
    name: &'static str,
    aliases: &'static [&'static str],
    repo: &'static str,
    license: &'static str,
    size_bytes: u64,
) -> CatalogEntry {
    let source = hub(repo, file("model.safetensors", None), BESIDE);
    CatalogEntry { aliases, ..row(name, ModelKind::Reranker, license, size_bytes, source) }
}

/// The rows of this kind, the default first.
#[rustfmt::skip]
pub static ROWS: &[CatalogEntry] = &[
    cross_encoder("ms-marco-minilm-l6-v2", &["cross-encoder/ms-marco-MiniLM-L-6-v2"],
        "cross-encoder/ms-marco-MiniLM-L6-v2", APACHE_2, 92_000_000),
    cross_encoder("ms-marco-minilm-l12-v2", &["cross-encoder/ms-marco-MiniLM-L-12-v2"],
        "cross-encoder/ms-marco-MiniLM-L12-v2", APACHE_2, 134_000_000),
    cross_encoder("bge-reranker-base", &[], "BAAI/bge-reranker-base", MIT, 1_130_000_000),
    cross_encoder("bge-reranker-v2-m3", &[], "BAAI/bge-reranker-v2-m3", APACHE_2, 2_290_000_000),
];
