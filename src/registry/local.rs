//! Models that are already on this machine, at a path of the user's.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::layout::{self, ModelFormat, Purpose};
use super::model_files::{ModelFiles, ModelSource};
use crate::error::{Error, Result};

/// The model at `path`: a weights file, with what it needs beside it, or a folder of these.
///
/// # Errors
/// When nothing is there, or it is no model.
pub fn resolve(path: &Path, purpose: Purpose) -> Result<ModelFiles> {
    let shown = path.display();
    let absolute = path.canonicalize().map_err(|error| {
        let hint = match path.components().count() {
            2 if path.is_relative() => format!("; for a repository of the hub write hf:{shown}"),
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
        // A GGUF file needs no others but parts that its name tells; its folder may be a large one.
        Some(main) if ModelFormat::of(main) == Some(ModelFormat::Gguf) => vec![main.to_owned()],
        _ => files_under(folder),
    };
    let layout = layout::choose(&names, main, purpose)
        .map_err(|error| error.context(format!("model `{shown}` cannot be used")))?;
    let files: BTreeMap<_, _> =
        layout.files.iter().map(|file| (file.name.clone(), folder.join(&file.path))).collect();
    let named_after = if main.is_some() { absolute.file_stem() } else { absolute.file_name() };
    let id = named_after.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
    ModelFiles::new(id, vec![shown.to_string()], &layout, files, ModelSource::Local(absolute.clone()))
}

/// Relative paths of all files under a folder, sorted, with `/` between their parts.
pub fn files_under(folder: &Path) -> Vec<String> {
    /// Deep enough for every layout known here, and an end to links that lead in circles.
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
