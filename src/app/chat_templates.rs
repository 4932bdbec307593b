//! The chat templates that operators choose instead of the models' own.

use std::fs;

use super::served_model::ServedModel;
use crate::chat::{builtin_names, builtin_template};
use crate::error::{Error, Kind, Result};

/// The largest template file, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The template of each model, if one of `options` is for it: `TEMPLATE`, or `MODEL=TEMPLATE` where several models
/// are served.
///
/// # Errors
/// When an option names no model that is served, or a template cannot be read.
pub fn assign(models: &[ServedModel], options: &[String]) -> Result<Vec<Option<String>>> {
    let mut templates = vec![None; models.len()];
    for option in options {
        let wrong = |what: String| Error::new(Kind::Config, format!("--chat-template {option}: {what}"));
        let (idx, template) = match (option.split_once('='), models) {
            (Some((name, template)), _) => {
                let idx = models.iter().position(|model| model.is_called(name));
                let unknown = || wrong(format!("`{name}` is not served; serve it with --model {name}"));
                (idx.ok_or_else(unknown)?, template)
            }
            (None, [_]) => (0, option.as_str()),
            (None, _) => {
                return Err(wrong(
                    "several chat models are served; name the model as MODEL=TEMPLATE".to_owned(),
                ));
            }
        };
        templates[idx] = Some(read(template).map_err(wrong)?);
    }
    Ok(templates)
}

/// The source of a template: a built-in one, or a file.
fn read(template: &str) -> Result<String, String> {
    if let Some(source) = builtin_template(template) {
        return Ok(source.to_owned());
    }
    let in_file = |e: std::io::Error| {
        let names = builtin_names().collect::<Vec<&str>>().join(", ");
        format!("cannot read `{template}`: {e}; name a Jinja file or one of {names}")
    };
    let n_bytes = fs::metadata(template).map_err(in_file)?.len();
    if n_bytes > MAX_FILE_BYTES {
        return Err(format!("the file has {n_bytes} bytes; at most {MAX_FILE_BYTES} are allowed"));
    }
    match fs::read_to_string(template).map_err(in_file)? {
        text if text.is_empty() => Err("the file is empty".to_owned()),
        text => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn models(ids: &[&str]) -> Vec<ServedModel> {
        ids.iter().map(|id| ServedModel::new((*id).to_owned(), vec![format!("{id}-alias")], None)).collect()
    }

    fn options(options: &[&str]) -> Vec<String> {
        options.iter().map(|option| (*option).to_owned()).collect()
    }

    #[test]
    fn an_option_is_for_the_only_model_or_for_the_one_it_names() {
        let chatml = builtin_template("chatml").map(str::to_owned);
        assert_eq!(assign(&models(&["a"]), &[]).unwrap(), [None]);
        let of_one = assign(&models(&["a"]), &options(&["chatml"])).unwrap();
        assert_eq!(of_one.into_iter().next().unwrap(), chatml);
        let of_two = assign(&models(&["a", "b"]), &options(&["b-alias=ChatML"])).unwrap();
        assert_eq!(of_two, [None, chatml]);
        for (wrong, word) in
            [("chatml", "MODEL=TEMPLATE"), ("c=chatml", "--model c"), ("a=no-such-file", "llama-3, mistral")]
        {
            let error = assign(&models(&["a", "b"]), &options(&[wrong])).unwrap_err();
            assert_eq!(error.kind(), Kind::Config);
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
