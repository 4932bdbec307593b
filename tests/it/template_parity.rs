//! Chat templates render the same text as in `transformers`.
//!
//! `CHAT_TEMPLATE_REFERENCE` names a file of templates, conversations and rendered texts. Without it, the project's
//! own templates are tested, each written for one feature that real ones use.

use std::collections::BTreeMap;
use std::{env, fs};

use predict_otron_9000::chat::template::{ChatTemplate, TemplateInput, TemplateSource};
use predict_otron_9000::error::Kind;
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Deserialize)]
struct Reference {
    strftime_now: String,
    bos_token: String,
    eos_token: String,
    templates: BTreeMap<String, Template>,
}

#[derive(Deserialize)]
struct Template {
    template: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    messages: Vec<Value>,
    tools: Option<Vec<Value>>,
    documents: Option<Vec<Value>>,
    add_generation_prompt: bool,
    #[serde(default)]
    options: Map<String, Value>,
    rendered: Option<String>,
    error: Option<String>,
}

#[test]
fn template_reference() {
    let path = env::var("CHAT_TEMPLATE_REFERENCE").unwrap_or("tests/data/chat_templates.json".to_owned());
    let reference: Reference = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let now = reference.strftime_now.parse().unwrap();
    let mut failures = Vec::new();
    let mut n_cases = 0;
    for (family, Template { template: source, cases }) in reference.templates {
        let template = ChatTemplate::new(
            TemplateSource::from(source.as_str())
                .with_special_token("bos_token", Some(&reference.bos_token))
                .with_special_token("eos_token", Some(&reference.eos_token)),
        );
        for case in cases {
            n_cases += 1;
            let found = template.as_ref().map_err(Clone::clone).and_then(|template| {
                template.render(TemplateInput {
                    messages: &case.messages,
                    tools: case.tools.as_deref(),
                    documents: case.documents.as_deref(),
                    add_generation_prompt: case.add_generation_prompt,
                    variables: case.options,
                    now,
                })
            });
            let agrees = match (&found, &case.rendered, &case.error) {
                (Ok(found), Some(rendered), _) => found == rendered,
                // A refusal has the template's message; for other failures, Python's message differs.
                (Err(found), None, Some(error)) => match found.kind() {
                    Kind::InvalidRequest => found.to_string().contains(error),
                    _ => !source.contains(error),
                },
                _ => false,
            };
            if !agrees {
                let expected = case.rendered.or(case.error);
                failures
                    .push(format!("{family}, {}:\n  expected {expected:?}\n  found    {found:?}", case.name));
            }
        }
    }
    assert!(n_cases > 0, "the file has no cases");
    assert!(failures.is_empty(), "{} of {n_cases} differ\n{}", failures.len(), failures.join("\n"));
}
