//! Model references: the ways to name a model.

use std::fmt;
use std::path::{MAIN_SEPARATOR, Path, PathBuf};

use super::catalog::{CatalogEntry, find_catalog_entry};
use super::names::{check_relative_path, check_repo, check_revision, check_word};
use crate::error::{Error, Result};

/// A parsed model reference. Every name in it is safe as a part of a path: no `..`, no empty or absolute parts,
/// no control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelRef {
    /// A catalog row, by its name or an alias.
    Catalog(&'static CatalogEntry),
    /// `hf:owner/repo[@revision][:file]`.
    Hub {
        /// `owner/name`.
        repo: String,
        /// A branch, tag or commit.
        revision: Option<String>,
        /// The file to load.
        file: Option<String>,
    },
    /// `pypi:package==version/path`.
    Wheel {
        /// The package's name.
        package: String,
        /// The package's version.
        version: String,
        /// A file or a folder in the wheel.
        path: String,
    },
    /// A local file or folder.
    Path(PathBuf),
}

impl ModelRef {
    /// Parses a reference. Catalog names take precedence over files of the same name; write `./name` for the file.
    ///
    /// # Errors
    /// When the reference is malformed, has a path that would leave its repository or wheel, or is a bare word that
    /// is neither in the catalog nor on disk.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        if let Some(entry) = find_catalog_entry(text) {
            Ok(Self::Catalog(entry))
        } else if let Some(rest) = text.strip_prefix("hf:") {
            parse_hub(rest).map_err(|error| error.context(format!("model reference `{text}`")))
        } else if let Some(rest) = text.strip_prefix("pypi:") {
            parse_wheel(rest).map_err(|error| error.context(format!("model reference `{text}`")))
        } else if !text.is_empty() && (text.contains(['/', MAIN_SEPARATOR]) || Path::new(text).exists()) {
            Ok(Self::Path(PathBuf::from(text)))
        } else {
            Err(Error::registry(format!(
                "unknown model `{text}`; `predict-otron-9000 models` lists the catalog; for any other model write \
                 hf:owner/repo[:file], pypi:package==version/path, or a path"
            )))
        }
    }

    /// The name that clients see, and its aliases.
    pub fn names(&self) -> (String, Vec<String>) {
        let stem = |path: &Path| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        match self {
            Self::Catalog(entry) => (entry.name.to_owned(), entry.other_names().map(str::to_owned).collect()),
            Self::Hub { repo, .. } => (repo.clone(), vec![self.to_string()]),
            Self::Wheel { package, path, .. } => {
                (stem(Path::new(path)).unwrap_or_else(|| package.clone()), vec![self.to_string()])
            }
            Self::Path(path) => (stem(path).unwrap_or_else(|| "model".to_owned()), vec![self.to_string()]),
        }
    }

    /// The owner of its repository, if it comes from one.
    pub fn owner(&self) -> Option<&str> {
        let repo = match self {
            Self::Catalog(entry) => entry.source.repo()?,
            Self::Hub { repo, .. } => repo,
            Self::Wheel { .. } | Self::Path(_) => return None,
        };
        repo.split_once('/').map(|(owner, _)| owner)
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Catalog(entry) => f.write_str(entry.name),
            Self::Hub { repo, revision, file } => {
                write!(f, "hf:{repo}")?;
                if let Some(revision) = revision {
                    write!(f, "@{revision}")?;
                }
                file.as_ref().map_or(Ok(()), |file| write!(f, ":{file}"))
            }
            Self::Wheel { package, version, path } => write!(f, "pypi:{package}=={version}/{path}"),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

fn parse_hub(text: &str) -> Result<ModelRef> {
    let (repo, file) = match text.split_once(':') {
        Some((repo, file)) => (repo, Some(file)),
        None => (text, None),
    };
    let (repo, revision) = match repo.split_once('@') {
        Some((repo, revision)) => (repo, Some(revision)),
        None => (repo, None),
    };
    check_repo(repo)?;
    revision.map_or(Ok(()), check_revision)?;
    file.map_or(Ok(()), check_relative_path)?;
    Ok(ModelRef::Hub {
        repo: repo.to_owned(),
        revision: revision.map(str::to_owned),
        file: file.map(str::to_owned),
    })
}

fn parse_wheel(text: &str) -> Result<ModelRef> {
    let malformed = || Error::registry("write pypi:package==version/path/in/wheel");
    let (package, rest) = text.split_once("==").ok_or_else(malformed)?;
    let (version, path) = rest.split_once('/').ok_or_else(malformed)?;
    check_word("package", package, "._-")?;
    check_word("version", version, ".!+_-")?;
    let path = path.trim_end_matches('/');
    check_relative_path(path)?;
    Ok(ModelRef::Wheel { package: package.to_owned(), version: version.to_owned(), path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsing_and_printing_are_inverse() {
        for text in [
            "smollm2-135m-instruct",
            "hf:owner/repo",
            "hf:gpt2",
            "hf:owner/repo@main",
            "hf:owner/repo@refs/pr/1:sub/file.gguf",
            "hf:owner/repo:file.gguf",
            "pypi:some-package==1.0.post1/pkg/model.gguf",
            "./here/model.gguf",
        ] {
            assert_eq!(ModelRef::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_repository_in_the_catalog_names_its_row_in_any_case() {
        for text in ["SENTENCE-transformers/all-MiniLM-L6-v2", "All-MiniLM-L6-v2"] {
            let ModelRef::Catalog(entry) = ModelRef::parse(text).unwrap() else { panic!("{text}") };
            assert_eq!(entry.name, "all-minilm-l6-v2");
        }
    }

    #[test]
    fn malformed_and_unsafe_references_are_refused() {
        for text in [
            "",
            "no-such-model",
            "hf:",
            "hf:/",
            "hf:owner/",
            "hf:../repo",
            "hf:owner/..",
            "hf:a/b/c",
            "hf:a--b/c",
            "hf:-owner/repo",
            "hf:owner/repo@",
            "hf:owner/repo@../../x",
            "hf:owner/repo@a b",
            "hf:owner/repo:",
            "hf:owner/repo:../x.gguf",
            "hf:owner/repo:/etc/passwd",
            "hf:owner/repo:a//b",
            "hf:owner/repo:a\\..\\b",
            "hf:owner/repo:a\u{0}b",
            "pypi:package",
            "pypi:package==1.0",
            "pypi:package==1.0/",
            "pypi:--index-url==1.0/x",
            "pypi:package==-r/x",
            "pypi:package==1.0/../x",
            "pypi:package==../x",
        ] {
            let error = ModelRef::parse(text).expect_err(text).to_string();
            assert!(!error.is_empty() && !error.ends_with('.'), "{text}: {error}");
        }
    }
}
