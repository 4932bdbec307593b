//! fastembed's catalogue, and how fastembed is to treat a model.

use std::collections::BTreeMap;
use std::path::PathBuf;

use fastembed::{
    EmbeddingModel, ModelInfo, OutputKey, Pooling, QuantizationMode, TextEmbedding as FastEmbed,
};

use crate::error::{Error, Result};
use crate::registry::{self, Registry, read_file};

/// How fastembed is to treat a model.
#[derive(Debug, Clone)]
pub struct Recipe {
    pub pooling: Option<Pooling>,
    pub quantization: QuantizationMode,
    pub output_key: Option<OutputKey>,
    /// Files beside the graph that hold some of its weights.
    pub external: Vec<String>,
}

/// A model of fastembed's catalogue.
pub struct CatalogueEntry(ModelInfo<EmbeddingModel>);

/// The files of a model of the catalogue.
pub struct CatalogueFiles {
    pub files: BTreeMap<String, PathBuf>,
    /// The graph.
    pub main: PathBuf,
    pub recipe: Recipe,
}

/// The tokenizer's files as fastembed wants them. Only the first two are always there.
const TOKENIZER_FILES: [(&str, bool); 4] = [
    ("tokenizer.json", false),
    ("config.json", false),
    ("special_tokens_map.json", true),
    ("tokenizer_config.json", true),
];

impl CatalogueEntry {
    /// The whole catalogue.
    pub fn all() -> impl Iterator<Item = Self> {
        FastEmbed::list_supported_models().into_iter().map(Self)
    }

    /// Finds a model by either of its names.
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

    /// Fetches its files.
    ///
    /// # Errors
    /// When they cannot be had.
    pub fn locate(self, registry: &Registry) -> Result<CatalogueFiles> {
        let info = self.0;
        let mut wanted = vec![(info.model_file.as_str(), false)];
        wanted.extend(info.additional_files.iter().map(|file| (file.as_str(), false)));
        wanted.extend(TOKENIZER_FILES);
        let files = registry.hub_files(&info.model_code, None, &wanted)?;
        let main = files.get(&info.model_file).cloned().ok_or_else(|| {
            Error::registry(format!("`{}` has no file `{}`", info.model_code, info.model_file))
        })?;
        let recipe = Recipe {
            pooling: FastEmbed::get_default_pooling_method(&info.model),
            quantization: FastEmbed::get_quantization_mode(&info.model),
            output_key: info.output_key,
            external: info.additional_files,
        };
        Ok(CatalogueFiles { files, main, recipe })
    }
}

impl Recipe {
    /// How to treat a folder that the user brings: pooled as its `1_Pooling/config.json` says.
    ///
    /// # Errors
    /// When that file is malformed, or asks for what fastembed does not do.
    pub fn of_folder(files: &BTreeMap<String, PathBuf>) -> Result<Self> {
        let json = files.get("1_Pooling/config.json").map(|path| read_file(path)).transpose()?;
        let own = json.map(|json| registry::Pooling::from_json(&json)).transpose()?;
        let pooling = match registry::Pooling::agreed(None, own)? {
            registry::Pooling::Mean => Pooling::Mean,
            registry::Pooling::Cls => Pooling::Cls,
            registry::Pooling::LastToken => {
                return Err(Error::model("fastembed does not pool by the last token"));
            }
        };
        let external =
            files.keys().filter(|name| name.contains(".onnx_data") || name.ends_with(".onnx.data"));
        Ok(Self {
            pooling: Some(pooling),
            quantization: QuantizationMode::None,
            output_key: None,
            external: external.cloned().collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::catalog_entries;

    #[test]
    fn rows_of_our_catalog_are_the_models_that_they_are_called_after() {
        let mut n_rows = 0;
        for row in catalog_entries() {
            let Some(entry) = row.aliases.iter().find_map(|alias| CatalogueEntry::find(alias)) else {
                continue;
            };
            n_rows += 1;
            let theirs = FastEmbed::get_default_pooling_method(&entry.0.model);
            let ours = match row.embedding.unwrap().pooling {
                registry::Pooling::Mean => Pooling::Mean,
                registry::Pooling::Cls => Pooling::Cls,
                registry::Pooling::LastToken => panic!("fastembed does not do that"),
            };
            assert_eq!(theirs, Some(ours), "{}", row.name);
            // Both names end in the model's own, whoever converted it.
            let own = |repo: &str| repo.rsplit('/').next().unwrap().to_ascii_lowercase();
            let (_, repo) = entry.names();
            assert_eq!(own(&repo).trim_end_matches("-onnx"), own(row.source.repo().unwrap()));
        }
        assert!(n_rows > 15, "{n_rows}");
    }

    #[test]
    fn every_model_of_the_catalogue_is_found_by_both_its_names() {
        for entry in CatalogueEntry::all() {
            let (own, repo) = entry.names();
            assert_eq!(CatalogueEntry::find(&own.to_uppercase()).unwrap().names(), (own, repo.clone()));
            assert_eq!(CatalogueEntry::find(&repo).unwrap().names().1, repo);
            assert!(FastEmbed::get_default_pooling_method(&entry.0.model).is_some(), "{repo}");
        }
    }
}
