//! Models at a local path.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::layout::{self, ModelFormat, Purpose};
use super::model_files::{ModelFiles, ModelSource};
use crate::error::{Error, Result};

/// Resolves the model at `path`: a file of weights with its companions beside it, or a folder of these.
///
/// # Errors
/// When the path does not exist, or is not a model.
pub fn resolve_path(path: &Path, purpose: Purpose) -> Result<ModelFiles> {
    let shown = path.display();
    let absolute = path.canonicalize().map_err(|error| {
        let hint = match path.components().count() {
            2 if path.is_relative() => format!("; to name a repository on the hub, write hf:{shown}"),
            _ => String::new(),
        };
        Error::registry(format!("cannot open model `{shown}`: {error}{hint}"))
    })?;
    let (folder, main) = if absolute.is_dir() {
        (absolute.as_path(), None)
    } else {
        (absolute.parent().unwrap_or(Path::new("/")), absolute.file_name().and_then(|name| name.to_str()))
    };
    let names = match main {
        // The name of a GGUF file implies its other parts, so there is no need to list a large folder.
        Some(main) if ModelFormat::from_path(main) == Some(ModelFormat::Gguf) => vec![main.to_owned()],
        _ => files_under(folder),
    };
    let layout = layout::choose_files(&names, main, purpose)
        .map_err(|error| error.context(format!("model `{shown}` cannot be used")))?;
    let files: BTreeMap<_, _> =
        layout.files.iter().map(|file| (file.name.clone(), folder.join(&file.path))).collect();
    let named_after = if main.is_some() { absolute.file_stem() } else { absolute.file_name() };
    let id = named_after.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
    ModelFiles::new(id, vec![shown.to_string()], &layout, files, ModelSource::Local(absolute.clone()))
}

/// Relative paths of all files under a folder, sorted, with `/` between their parts.
pub fn files_under(folder: &Path) -> Vec<String> {
    /// Deep enough for every known layout; the limit also stops cycles of links.
    const MAX_DEPTH: usize = 4;
    fn walk(folder: &Path, prefix: &str, depth: usize, files: &mut Vec<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = entry.path();
            if path.is_file() {
                files.push(format!("{prefix}{name}"));
            } else if depth > 1 && path.is_dir() {
                walk(&path, &format!("{prefix}{name}/"), depth - 1, files);
            }
        }
    }
    let mut files = Vec::new();
    walk(folder, "", MAX_DEPTH, &mut files);
    files.sort();
    files
}
