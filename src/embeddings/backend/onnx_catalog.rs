//! fastembed's model catalog, and the settings with which fastembed runs a model.

use std::collections::BTreeMap;
use std::path::PathBuf;

use fastembed::{
    EmbeddingModel, ModelInfo, OutputKey, Pooling, QuantizationMode, TextEmbedding as FastEmbed,
};

use crate::error::{Error, Result};
use crate::registry::{self, Registry, read_file};

/// The settings with which fastembed runs an ONNX model.
#[derive(Debug, Clone)]
pub struct OnnxConfig {
    /// How token embeddings become one vector; `None` where the graph pools.
    pub pooling: Option<Pooling>,
    /// How the graph was quantized.
    pub quantization: QuantizationMode,
    /// The graph output to use; `None` for fastembed's default order of preference.
    pub output_key: Option<OutputKey>,
    /// External data: files beside the graph that hold some of its weights.
    pub external_data: Vec<String>,
}

/// A model of fastembed's catalog.
pub struct FastembedEntry(ModelInfo<EmbeddingModel>);

/// The files of a model of fastembed's catalog.
pub struct FastembedFiles {
    /// Every file by its path in the repository.
    pub files: BTreeMap<String, PathBuf>,
    /// The graph.
    pub main: PathBuf,
    /// The settings to run it with.
    pub config: OnnxConfig,
}

/// The files that fastembed's tokenizer reads, and whether each is optional.
const TOKENIZER_FILES: [(&str, bool); 4] = [
    ("tokenizer.json", false),
    ("config.json", false),
    ("special_tokens_map.json", true),
    ("tokenizer_config.json", true),
];

impl FastembedEntry {
    /// Every model of the catalog.
    pub fn all() -> impl Iterator<Item = Self> {
        FastEmbed::list_supported_models().into_iter().map(Self)
    }

    /// Finds a model by either of its names, in any case.
    pub fn find(name: &str) -> Option<Self> {
        Self::all().find(|entry| {
            let (own, repo) = entry.names();
            own.eq_ignore_ascii_case(name) || repo.eq_ignore_ascii_case(name)
        })
    }

    /// fastembed's own name (`BGESmallENV15`) and the repository (`Xenova/bge-small-en-v1.5`).
    pub fn names(&self) -> (String, String) {
        (self.0.model.to_string(), self.0.model_code.clone())
    }

    /// Locates the model's files, and downloads those that are missing.
    ///
    /// # Errors
    /// When a file is not available.
    pub fn locate(self, registry: &Registry) -> Result<FastembedFiles> {
        let info = self.0;
        let mut wanted = vec![(info.model_file.as_str(), false)];
        wanted.extend(info.additional_files.iter().map(|file| (file.as_str(), false)));
        wanted.extend(TOKENIZER_FILES);
        let files = registry.hub_files(&info.model_code, None, &wanted)?;
        let main = files.get(&info.model_file).cloned().ok_or_else(|| {
            Error::registry(format!("`{}` has no file `{}`", info.model_code, info.model_file))
        })?;
        let config = OnnxConfig {
            pooling: FastEmbed::get_default_pooling_method(&info.model),
            quantization: FastEmbed::get_quantization_mode(&info.model),
            output_key: info.output_key,
            external_data: info.additional_files,
        };
        Ok(FastembedFiles { files, main, config })
    }
}

impl OnnxConfig {
    /// The settings for a user's own model: the pooling of its `1_Pooling/config.json`, the mean by default.
    ///
    /// # Errors
    /// When that file is malformed, or names a pooling that fastembed does not support.
    pub fn from_files(files: &BTreeMap<String, PathBuf>) -> Result<Self> {
        let json = files.get("1_Pooling/config.json").map(|path| read_file(path)).transpose()?;
        let own = json.map(|json| registry::Pooling::from_json(&json)).transpose()?;
        let pooling = match registry::Pooling::reconcile(None, own)? {
            registry::Pooling::Mean => Pooling::Mean,
            registry::Pooling::Cls => Pooling::Cls,
            registry::Pooling::LastToken => {
                return Err(Error::model(
                    "fastembed does not support last-token pooling; use the safetensors model",
                ));
            }
        };
        let external_data =
            files.keys().filter(|name| name.contains(".onnx_data") || name.ends_with(".onnx.data"));
        Ok(Self {
            pooling: Some(pooling),
            quantization: QuantizationMode::None,
            output_key: None,
            external_data: external_data.cloned().collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::catalog_entries;

    #[test]
    fn catalog_rows_with_a_fastembed_alias_name_the_same_model() {
        let mut n_rows = 0;
        for row in catalog_entries() {
            let Some(entry) = row.aliases.iter().find_map(|alias| FastembedEntry::find(alias)) else {
                continue;
            };
            n_rows += 1;
            let theirs = FastEmbed::get_default_pooling_method(&entry.0.model);
            let ours = match row.embedding.unwrap().pooling {
                registry::Pooling::Mean => Pooling::Mean,
                registry::Pooling::Cls => Pooling::Cls,
                registry::Pooling::LastToken => panic!("not supported by fastembed"),
            };
            assert_eq!(theirs, Some(ours), "{}", row.name);
            // Both repository names end in the model's name, whoever converted it.
            let own = |repo: &str| repo.rsplit('/').next().unwrap().to_ascii_lowercase();
            let (_, repo) = entry.names();
            assert_eq!(own(&repo).trim_end_matches("-onnx"), own(row.source.repo().unwrap()));
        }
        assert!(n_rows > 15, "{n_rows}");
    }

    #[test]
    fn every_fastembed_model_is_found_by_both_its_names() {
        for entry in FastembedEntry::all() {
            let (own, repo) = entry.names();
            assert_eq!(FastembedEntry::find(&own.to_uppercase()).unwrap().names(), (own, repo.clone()));
            assert_eq!(FastembedEntry::find(&repo).unwrap().names().1, repo);
            assert!(FastEmbed::get_default_pooling_method(&entry.0.model).is_some(), "{repo}");
        }
    }
}
