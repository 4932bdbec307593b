//! Choosing the files of a model from those of a repository, wheel or folder. Works on names only.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::kind::ModelKind;
use crate::error::{Error, Result};

/// The file format of a model's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelFormat {
    /// A GGUF file, or the first part of a split one. It also contains configuration and tokenizer.
    Gguf,
    /// `model.safetensors`, or `model.safetensors.index.json` and its shards, with `config.json`
    /// and `tokenizer.json`.
    Safetensors,
    /// An ONNX graph with `config.json` and `tokenizer.json`.
    Onnx,
}

impl ModelFormat {
    /// The name of the format, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gguf => "gguf",
            Self::Safetensors => "safetensors",
            Self::Onnx => "onnx",
        }
    }

    /// The format of the file at `path`, by its extension.
    pub fn from_path(path: &str) -> Option<Self> {
        let path = path.to_ascii_lowercase();
        if path.ends_with(".gguf") {
            Some(Self::Gguf)
        } else if path.ends_with(".safetensors") || path.ends_with(INDEX) {
            Some(Self::Safetensors)
        } else if path.ends_with(".onnx") {
            Some(Self::Onnx)
        } else {
            None
        }
    }
}

/// Paths of files on disk, by logical name.
pub type FoundFiles = BTreeMap<String, PathBuf>;

/// A file to obtain from a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedFile {
    /// Its logical name, such as `tokenizer.json`, under which the loader looks for it.
    pub name: String,
    /// Its path in the repository, wheel or folder.
    pub path: String,
    /// SHA-256 of its bytes in lower-case hex, if known beforehand.
    pub sha256: Option<String>,
    /// Whether the source may lack it.
    pub optional: bool,
}

/// The files of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileLayout {
    /// The format of the weights.
    pub format: ModelFormat,
    /// All files; the one to load comes first.
    pub files: Vec<WantedFile>,
}

/// The use for which a model is requested.
#[derive(Debug, Clone, Copy)]
pub struct Purpose {
    /// The kind of model; `None` accepts any.
    pub kind: Option<ModelKind>,
    /// The acceptable formats, in order of preference.
    pub formats: &'static [ModelFormat],
}

impl From<ModelKind> for Purpose {
    fn from(kind: ModelKind) -> Self {
        Some(kind).into()
    }
}

impl From<Option<ModelKind>> for Purpose {
    fn from(kind: Option<ModelKind>) -> Self {
        // The default embedding model is in safetensors format, the default chat model in GGUF.
        let formats: &[ModelFormat] = match kind {
            Some(ModelKind::Embedding | ModelKind::Reranker) => {
                &[ModelFormat::Safetensors, ModelFormat::Onnx, ModelFormat::Gguf]
            }
            Some(ModelKind::Chat) | None => &[ModelFormat::Gguf, ModelFormat::Safetensors, ModelFormat::Onnx],
        };
        Self { kind, formats }
    }
}

const INDEX: &str = "model.safetensors.index.json";

/// The quantizations to prefer where a repository has several, the best trade-off first.
const PREFERRED_QUANTIZATIONS: [&str; 3] = ["Q4_K_M", "Q4_0", "Q8_0"];

/// Files that models in formats other than GGUF need.
const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];

/// Names of the file in which sentence-transformers keeps a limit of tokens and the case of texts, in the order in
/// which it looks for them.
pub const SENTENCE_CONFIGS: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];

/// Files that are used if present, beside [`SENTENCE_CONFIGS`].
const COMPANIONS: [&str; 8] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
    "modules.json",
    "1_Pooling/config.json",
    "config_sentence_transformers.json",
];

/// Chooses a model's files among `names`, which are relative paths. `main` is the file to load, if the user named
/// it.
///
/// # Errors
/// When there is no model in an acceptable format, there are several without a preferred one, or a part of the
/// model is missing.
pub fn choose_files(names: &[String], main: Option<&str>, purpose: Purpose) -> Result<FileLayout> {
    let formats = purpose.formats;
    if let Some(main) = main {
        let layout = layout_for(names, main)?;
        if !formats.contains(&layout.format) {
            return Err(Error::registry(format!(
                "`{main}` has the wrong format; expected {}",
                format_names(formats)
            )));
        }
        return Ok(layout);
    }
    for format in formats {
        let main = match format {
            ModelFormat::Gguf => choose_gguf(names)?,
            ModelFormat::Safetensors => first_present(names, &["model.safetensors", INDEX]),
            ModelFormat::Onnx => first_present(names, &["model.onnx", "onnx/model.onnx"]),
        };
        if let Some(main) = main {
            return layout_for(names, main);
        }
    }
    Err(Error::registry(format!("it contains no {}", format_names(formats))))
}

/// The names of `formats` for a message.
fn format_names(formats: &[ModelFormat]) -> String {
    let name = |format: &ModelFormat| match format {
        ModelFormat::Gguf => "GGUF file",
        ModelFormat::Safetensors => "model.safetensors",
        ModelFormat::Onnx => "model.onnx",
    };
    formats.iter().map(name).collect::<Vec<_>>().join(" or ")
}

/// The GGUF file to use, if there is any.
fn choose_gguf(names: &[String]) -> Result<Option<&str>> {
    let is_model = |name: &&str| {
        ModelFormat::from_path(name) == Some(ModelFormat::Gguf)
            && !file_name(name).to_ascii_lowercase().starts_with("mmproj")
    };
    let is_first = |name: &&str| shard_of(name).is_none_or(|(idx, _)| idx == 1);
    let whole: Vec<&str> = names.iter().map(String::as_str).filter(is_model).filter(is_first).collect();
    if let [only] = whole[..] {
        return Ok(Some(only));
    }
    for quantization in PREFERRED_QUANTIZATIONS {
        let matching: Vec<&str> =
            whole.iter().copied().filter(|name| has_quantization(name, quantization)).collect();
        if let [only] = matching[..] {
            return Ok(Some(only));
        }
    }
    if whole.is_empty() {
        Ok(None)
    } else {
        Err(Error::registry(format!(
            "it contains several GGUF files; name one, as in hf:owner/repo:file: {}",
            whole.join(", ")
        )))
    }
}

/// Whether the name of a GGUF file ends in this quantization, as a word of its own.
fn has_quantization(name: &str, quantization: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let stem = name.strip_suffix(".GGUF").unwrap_or(&name);
    let whole = stem.strip_suffix(quantization);
    let first_part = stem.split_once("-00001-OF-").and_then(|(stem, _)| stem.strip_suffix(quantization));
    whole.or(first_part).is_some_and(|rest| rest.is_empty() || rest.ends_with(['-', '.', '_', '/']))
}

fn first_present<'a>(names: &'a [String], wanted: &[&str]) -> Option<&'a str> {
    wanted.iter().find_map(|wanted| names.iter().find(|name| name == wanted)).map(String::as_str)
}

/// The layout of the model whose weights are at `main`.
fn layout_for(names: &[String], main: &str) -> Result<FileLayout> {
    let known: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    if !known.contains(main) {
        return Err(Error::registry(format!("it has no file `{main}`, only {}", summary(names))));
    }
    let format = ModelFormat::from_path(main).ok_or_else(|| {
        Error::registry(format!("`{main}` is not a model: expected .gguf, .safetensors or .onnx"))
    })?;
    let mut files = vec![wanted_file(file_name(main), main)];
    if format == ModelFormat::Gguf {
        files.extend(following_parts(main)?);
        return Ok(FileLayout { format, files });
    }
    let folder = main.strip_suffix(file_name(main)).unwrap_or_default();
    if main.ends_with(INDEX) {
        files.extend(shards(names, folder)?);
    }
    // ONNX graphs over 2 GB store their tensors in external data files named after the graph.
    let external = |name: &&String| {
        format == ModelFormat::Onnx
            && name.strip_prefix(main).is_some_and(|rest| rest.starts_with(['_', '.']))
    };
    files.extend(names.iter().filter(external).map(|name| wanted_file(file_name(name), name)));
    // A graph in `onnx/` may use the tokenizer of the parent folder.
    let find_beside = |name: &str| {
        [format!("{folder}{name}"), name.to_owned()].into_iter().find(|path| known.contains(path.as_str()))
    };
    for name in REQUIRED {
        let path = find_beside(name)
            .ok_or_else(|| Error::registry(format!("it has no {name}, which `{main}` needs")))?;
        files.push(wanted_file(name, &path));
    }
    let companions = COMPANIONS.iter().chain(&SENTENCE_CONFIGS);
    files.extend(companions.filter_map(|name| find_beside(name).map(|path| wanted_file(name, &path))));
    Ok(FileLayout { format, files })
}

/// The other parts of a split GGUF file, whose names follow from that of the first part.
fn following_parts(main: &str) -> Result<Vec<WantedFile>> {
    let Some((_, n_parts)) = shard_of(main) else { return Ok(Vec::new()) };
    let (stem, count) = main.split_once("-00001-of-").ok_or_else(|| {
        Error::registry(format!("`{main}` is a part of a split model; name the first part, -00001"))
    })?;
    let part = |number| format!("{stem}-{number:05}-of-{count}");
    Ok((2..=n_parts).map(part).map(|path| wanted_file(file_name(&path), &path)).collect())
}

/// All shards of the sharded model in `folder`.
fn shards(names: &[String], folder: &str) -> Result<Vec<WantedFile>> {
    let mut found: Vec<(usize, usize, &str)> = names
        .iter()
        .filter_map(|name| {
            let file = name.strip_prefix(folder).filter(|file| file.starts_with("model-"))?;
            let (idx, n_shards) = shard_of(file.strip_suffix(".safetensors")?)?;
            Some((idx, n_shards, name.as_str()))
        })
        .collect();
    found.sort_unstable();
    let n_shards = found.first().map_or(0, |&(_, n_shards, _)| n_shards);
    let complete = found.iter().map(|&(idx, n, _)| (idx, n)).eq((1..=n_shards).map(|idx| (idx, n_shards)));
    if found.is_empty() || !complete {
        return Err(Error::registry(format!("`{folder}{INDEX}` exists, but some of its shards are missing")));
    }
    Ok(found.into_iter().map(|(_, _, name)| wanted_file(file_name(name), name)).collect())
}

/// The index (from 1) and the number of shards, if a name ends like `-00002-of-00005`.
fn shard_of(name: &str) -> Option<(usize, usize)> {
    let stem = name.strip_suffix(".gguf").unwrap_or(name);
    let (rest, n_shards) = stem.rsplit_once("-of-")?;
    let (_, idx) = rest.rsplit_once('-')?;
    let number = |digits: &str| if digits.len() == 5 { digits.parse().ok() } else { None };
    Some((number(idx)?, number(n_shards)?))
}

fn wanted_file(name: &str, path: &str) -> WantedFile {
    WantedFile { name: name.to_owned(), path: path.to_owned(), sha256: None, optional: false }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The first few names, for an error message.
fn summary(names: &[String]) -> String {
    const SHOWN: usize = 20;
    match names {
        [] => "nothing".to_owned(),
        names if names.len() <= SHOWN => names.join(", "),
        names => format!("{} and {} more", names[..SHOWN].join(", "), names.len() - SHOWN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str], main: Option<&str>, kind: Option<ModelKind>) -> Result<Vec<String>, String> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        choose_files(&names, main, kind.into())
            .map(|layout| layout.files.into_iter().map(|file| file.path).collect())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_only_gguf_or_the_preferred_quantization_is_chosen() {
        let gguf = |names: &[&str]| chosen(names, None, None);
        assert_eq!(gguf(&["README.md", "a.Q5_0.gguf"]).unwrap(), ["a.Q5_0.gguf"]);
        assert_eq!(gguf(&["a-Q8_0.gguf", "a-Q4_0.gguf", "a-q4_k_m.gguf"]).unwrap(), ["a-q4_k_m.gguf"]);
        assert_eq!(gguf(&["a-Q8_0.gguf", "a-Q4_0.gguf", "a-IQ4_K_M.gguf"]).unwrap(), ["a-Q4_0.gguf"]);
        assert_eq!(gguf(&["a.gguf", "mmproj-a.gguf"]).unwrap(), ["a.gguf"]);
        let several = gguf(&["a.Q2_K.gguf", "a.Q3_K.gguf"]).unwrap_err();
        assert!(several.contains("a.Q2_K.gguf, a.Q3_K.gguf") && several.contains("hf:owner/repo:file"));
    }

    #[test]
    fn a_split_gguf_is_chosen_with_all_its_parts() {
        let gguf = |names: &[&str], main| chosen(names, main, None);
        let [one, two] = ["x/a-Q8_0-00001-of-00002.gguf", "x/a-Q8_0-00002-of-00002.gguf"];
        assert_eq!(gguf(&[two, one], None).unwrap(), [one, two]);
        assert_eq!(gguf(&[two, one], Some(one)).unwrap(), [one, two]);
        assert_eq!(gguf(&["x/a-Q2_K.gguf", "x/a-Q6_K.gguf", two, one], None).unwrap(), [one, two]);
        assert_eq!(gguf(&[one], Some(one)).unwrap(), [one, two], "the listing may have only the named file");
        let second = gguf(&[two, one], Some(two)).unwrap_err();
        assert!(second.contains("name the first part"), "{second}");
    }

    #[test]
    fn each_kind_prefers_its_own_format() {
        let all = ["a.gguf", "model.safetensors", "onnx/model.onnx", "config.json", "tokenizer.json"];
        assert_eq!(chosen(&all, None, Some(ModelKind::Chat)).unwrap(), ["a.gguf"]);
        assert_eq!(
            chosen(&all, None, Some(ModelKind::Embedding)).unwrap(),
            ["model.safetensors", "config.json", "tokenizer.json"]
        );
        let onnx = ["onnx/model.onnx", "config.json", "tokenizer.json"];
        assert_eq!(chosen(&all, Some("onnx/model.onnx"), None).unwrap(), onnx);
        let names: Vec<String> = all.iter().map(|&name| name.to_owned()).collect();
        let only_onnx = Purpose { kind: Some(ModelKind::Embedding), formats: &[ModelFormat::Onnx] };
        let chosen = choose_files(&names, None, only_onnx).unwrap();
        assert_eq!(chosen.files.iter().map(|file| &file.path).collect::<Vec<_>>(), onnx);
        for (main, end) in [(Some("a.gguf"), "expected model.onnx"), (None, "contains no model.onnx")] {
            let error = choose_files(&names[..2], main, only_onnx).unwrap_err().to_string();
            assert!(error.ends_with(end), "{error}");
        }
    }

    #[test]
    fn shards_must_be_complete() {
        let index = "model.safetensors.index.json";
        let [one, two] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        let names = [two, one, index, "config.json", "tokenizer.json"];
        assert_eq!(chosen(&names, None, None).unwrap(), [index, one, two, "config.json", "tokenizer.json"]);
        assert!(chosen(&names[1..], None, None).unwrap_err().contains("shards"));
    }

    #[test]
    fn companion_files_are_optional_and_required_files_are_not() {
        let names = ["model.safetensors", "config.json", "tokenizer.json", "1_Pooling/config.json", "x.bin"];
        assert_eq!(chosen(&names, None, None).unwrap(), names[..4]);
        assert!(chosen(&names[..2], None, None).unwrap_err().contains("tokenizer.json"));
        let graph = ["model.onnx", "model.onnx_data", "config.json", "tokenizer.json"];
        assert_eq!(chosen(&graph, None, None).unwrap(), graph);
    }

    #[test]
    fn errors_name_the_missing_model() {
        assert!(
            chosen(&["README.md"], None, None).unwrap_err().contains("no GGUF file or model.safetensors")
        );
        assert!(chosen(&["a.gguf"], Some("b.gguf"), None).unwrap_err().contains("no file `b.gguf`"));
        assert!(chosen(&["a.txt"], Some("a.txt"), None).unwrap_err().contains("not a model"));
    }
}
