//! `GET /docs`: the document of [`super::document`] as one page that needs nothing else, not even a script.

use std::fmt::Write;

use serde_json::Value;

use super::document::EVENT_DATA;
use super::html::escape;

const STYLE: &str = "\
:root{color-scheme:light dark;--faint:light-dark(#667,#99a);--line:light-dark(#ddd,#444);\
--back:light-dark(#f5f5f7,#222228)}\
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
code{font:.9em ui-monospace,monospace;background:var(--back);padding:.1em .3em;border-radius:.2em}\
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.3rem .6rem .3rem 0;\
border-top:1px solid var(--line)}td p{margin:0}\
details{border:1px solid var(--line);border-radius:.4rem;padding:.5rem 1rem;margin:.6rem 0}\
summary{cursor:pointer}summary span,.type{color:var(--faint)}h4{margin:1rem 0 .3rem}";

/// The whole page.
pub fn render(document: &Value) -> String {
    let info = &document["info"];
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style>\
         <h1>{title} {version}</h1>{about}<p>For programs: <a href=\"/openapi.json\"><code>/openapi.json</code></a>.</p>",
        title = text(&info["title"]),
        version = text(&info["version"]),
        about = prose(&info["description"]),
    );
    for tag in items(&document["tags"]) {
        let _ = write!(html, "<h2>{}</h2>", text(&tag["name"]));
        for (path, methods) in fields(&document["paths"]) {
            for (method, operation) in fields(methods) {
                if items(&operation["tags"]).contains(&tag["name"]) {
                    html += &section(path, &method.to_uppercase(), operation);
                }
            }
        }
    }
    html += "<h2>Types</h2>";
    for (name, schema) in fields(&document["components"]["schemas"]) {
        let _ = write!(
            html,
            "<details id=\"{name}\"><summary><code>{name}</code></summary>{}{}</details>",
            prose(&schema["description"]),
            table(schema).unwrap_or_else(|| format!("<p>{}</p>", kind(schema))),
        );
    }
    html += "<h2>Errors</h2>";
    for (name, response) in fields(&document["components"]["responses"]) {
        let _ = write!(
            html,
            "<details id=\"{name}\"><summary><code>{name}</code> <span>{}</span></summary>{}</details>",
            text(&response["description"]),
            what_comes(response),
        );
    }
    html + "<h2>Headers of answers</h2>"
        + &rows(fields(&document["components"]["headers"]))
        + SCRIPT
        + "</html>"
}

/// Opens what a link leads to.
const SCRIPT: &str = "<script>addEventListener('hashchange',()=>{const found=document.getElementById(\
                      location.hash.slice(1));if(found)found.open=true})</script>";

/// An operation: what it takes and what it answers.
fn section(path: &str, method: &str, operation: &Value) -> String {
    let mut html = format!(
        "<details id=\"{id}\"><summary><code>{method} {path}</code> <span>{summary}</span></summary>",
        id = text(&operation["operationId"]),
        path = escape(path),
        summary = text(&operation["summary"]),
    );
    let in_path = items(&operation["parameters"]).iter().filter(|parameter| parameter["in"] == "path");
    for parameter in in_path {
        let _ = write!(html, "<p>In the path: <code>{}</code></p>", text(&parameter["name"]));
    }
    for (media_type, content) in fields(&operation["requestBody"]["content"]) {
        let _ = write!(html, "<h4>Body, <code>{media_type}</code></h4><p>{}</p>", kind(&content["schema"]));
    }
    html += "<h4>Answers</h4><table>";
    for (status, response) in fields(&operation["responses"]) {
        let what = match reference(response) {
            Some(name) => link(name),
            None => format!("{}{}", prose(&response["description"]), what_comes(response)),
        };
        let _ = write!(html, "<tr><th>{status}<td>{what}");
    }
    html + "</table></details>"
}

/// Bodies and headers of an answer.
fn what_comes(response: &Value) -> String {
    let bodies = fields(&response["content"]).map(|(media_type, content)| {
        let data = content.pointer(EVENT_DATA);
        format!("<p><code>{media_type}</code>: {}</p>", kind(data.unwrap_or(&content["schema"])))
    });
    let headers: Vec<String> =
        fields(&response["headers"]).map(|(name, _)| format!("<code>{name}</code>")).collect();
    format!("{}<p>Headers: {}</p>", bodies.collect::<String>(), headers.join(", "))
}

/// The fields of an object, where it has some.
fn table(schema: &Value) -> Option<String> {
    schema.get("properties").map(|properties| {
        let required = items(&schema["required"]);
        let name = |name: &String| {
            let mark = if required.contains(&Value::from(name.as_str())) { " *" } else { "" };
            format!("<code>{}</code>{mark}", escape(name))
        };
        let all: String = fields(properties).map(|(key, schema)| row(&name(key), schema)).collect();
        format!("<table>{all}</table>")
    })
}

fn rows<'a>(all: impl Iterator<Item = (&'a String, &'a Value)>) -> String {
    let all: String = all.map(|(name, header)| row(&format!("<code>{name}</code>"), header)).collect();
    format!("<table>{all}</table>")
}

fn row(name: &str, schema: &Value) -> String {
    let of = schema.get("schema").unwrap_or(schema);
    format!("<tr><th>{name}<td class=\"type\">{}<td>{}", kind(of), prose(&schema["description"]))
}

/// What a value may be, in a few words.
fn kind(schema: &Value) -> String {
    if let Some(name) = reference(schema) {
        return link(name);
    }
    if let Some(value) = schema.get("const") {
        return format!("<code>{}</code>", escape(&value.to_string()));
    }
    if let Some(values) = schema.get("enum") {
        let values = items(values).iter().map(|value| format!("<code>{}</code>", escape(&value.to_string())));
        return values.collect::<Vec<_>>().join(" or ");
    }
    if let Some(kinds) = schema.get("anyOf").or(schema.get("oneOf")) {
        return items(kinds).iter().map(kind).collect::<Vec<_>>().join(" or ");
    }
    let kinds: Vec<String> = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().map(text).collect(),
        Value::Null => vec!["anything".to_owned()],
        kind => vec![text(kind)],
    };
    let of_items = schema.get("items").map(|items| format!(" of {}", kind(items))).unwrap_or_default();
    let within = |least: &str, most: &str, unit: &str| match (schema.get(least), schema.get(most)) {
        (Some(least), Some(most)) => format!(", {least} to {most}{unit}"),
        (Some(least), None) => format!(", {least}{unit} or more"),
        (None, Some(most)) => format!(", up to {most}{unit}"),
        (None, None) => String::new(),
    };
    kinds.join(" or ")
        + &of_items
        + &within("minimum", "maximum", "")
        + &within("minItems", "maxItems", " items")
        + &within("minLength", "maxLength", " characters")
}

fn link(name: &str) -> String {
    format!("<a href=\"#{name}\"><code>{name}</code></a>")
}

/// The name that a schema or an answer has in the document, if it stands elsewhere.
fn reference(value: &Value) -> Option<&str> {
    value.get("$ref")?.as_str()?.rsplit('/').next()
}

/// Paragraphs, with what stands between backticks as code.
fn prose(value: &Value) -> String {
    let paragraph = |text: &str| {
        let pieces = text.split('`').enumerate();
        let html: String = pieces
            .map(|(idx, piece)| match idx % 2 {
                0 => escape(piece),
                _ => format!("<code>{}</code>", escape(piece)),
            })
            .collect();
        format!("<p>{html}</p>")
    };
    value.as_str().unwrap_or_default().split("\n\n").filter(|text| !text.is_empty()).map(paragraph).collect()
}

fn text(value: &Value) -> String {
    escape(value.as_str().unwrap_or_default())
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn fields(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}
