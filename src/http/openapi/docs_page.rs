//! `GET /docs`: the document of [`super::document`] as one self-contained page, readable without scripts.

use std::fmt::Write;

use serde_json::Value;

use super::document::EVENT_DATA_POINTER;
use super::html::escape;

/// The page's style sheet.
const STYLE: &str = "\
:root{color-scheme:light dark;--faint:light-dark(#667,#99a);--line:light-dark(#ddd,#444);\
--back:light-dark(#f5f5f7,#222228)}\
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
code{font:.9em ui-monospace,monospace;background:var(--back);padding:.1em .3em;border-radius:.2em}\
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.3rem .6rem .3rem 0;\
border-top:1px solid var(--line)}td p{margin:0}\
details{border:1px solid var(--line);border-radius:.4rem;padding:.5rem 1rem;margin:.6rem 0}\
summary{cursor:pointer}summary span,.type{color:var(--faint)}h4{margin:1rem 0 .3rem}";

/// Opens the target of a followed link.
const SCRIPT: &str = "<script>addEventListener('hashchange',()=>{const found=document.getElementById(\
                      location.hash.slice(1));if(found)found.open=true})</script>";

/// Renders an OpenAPI document as HTML.
pub fn render(document: &Value) -> String {
    let info = &document["info"];
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style>\
         <h1>{title} {version}</h1>{about}<p>Machine-readable: <a href=\"/openapi.json\"><code>/openapi.json</code></a>.</p>",
        title = escaped_str(&info["title"]),
        version = escaped_str(&info["version"]),
        about = prose(&info["description"]),
    );
    for tag in items(&document["tags"]) {
        let _ = write!(html, "<h2>{}</h2>", escaped_str(&tag["name"]));
        for (path, methods) in entries(&document["paths"]) {
            for (method, operation) in entries(methods) {
                if items(&operation["tags"]).contains(&tag["name"]) {
                    html += &operation_section(path, &method.to_uppercase(), operation);
                }
            }
        }
    }
    html += "<h2>Types</h2>";
    for (name, schema) in entries(&document["components"]["schemas"]) {
        let _ = write!(
            html,
            "<details id=\"{name}\"><summary><code>{name}</code></summary>{}{}</details>",
            prose(&schema["description"]),
            properties_table(schema).unwrap_or_else(|| format!("<p>{}</p>", type_text(schema))),
        );
    }
    html += "<h2>Errors</h2>";
    for (name, response) in entries(&document["components"]["responses"]) {
        let _ = write!(
            html,
            "<details id=\"{name}\"><summary><code>{name}</code> <span>{}</span></summary>{}</details>",
            escaped_str(&response["description"]),
            content_and_headers(response),
        );
    }
    html + "<h2>Response headers</h2>"
        + &headers_table(entries(&document["components"]["headers"]))
        + SCRIPT
        + "</html>"
}

/// An operation: its parameters, body and responses.
fn operation_section(path: &str, method: &str, operation: &Value) -> String {
    let mut html = format!(
        "<details id=\"{id}\"><summary><code>{method} {path}</code> <span>{summary}</span></summary>",
        id = escaped_str(&operation["operationId"]),
        path = escape(path),
        summary = escaped_str(&operation["summary"]),
    );
    let in_path = items(&operation["parameters"]).iter().filter(|parameter| parameter["in"] == "path");
    for parameter in in_path {
        let _ = write!(html, "<p>Path parameter: <code>{}</code></p>", escaped_str(&parameter["name"]));
    }
    for (media_type, content) in entries(&operation["requestBody"]["content"]) {
        let _ = write!(
            html,
            "<h4>Request body, <code>{media_type}</code></h4><p>{}</p>",
            type_text(&content["schema"])
        );
    }
    html += "<h4>Responses</h4><table>";
    for (status, response) in entries(&operation["responses"]) {
        let description = match ref_name(response) {
            Some(name) => type_link(name),
            None => format!("{}{}", prose(&response["description"]), content_and_headers(response)),
        };
        let _ = write!(html, "<tr><th>{status}<td>{description}");
    }
    html + "</table></details>"
}

/// The media types and headers of a response.
fn content_and_headers(response: &Value) -> String {
    let bodies = entries(&response["content"]).map(|(media_type, content)| {
        let data = content.pointer(EVENT_DATA_POINTER);
        format!("<p><code>{media_type}</code>: {}</p>", type_text(data.unwrap_or(&content["schema"])))
    });
    let headers: Vec<String> =
        entries(&response["headers"]).map(|(name, _)| format!("<code>{name}</code>")).collect();
    format!("{}<p>Headers: {}</p>", bodies.collect::<String>(), headers.join(", "))
}

/// The properties of an object schema; none for another type.
fn properties_table(schema: &Value) -> Option<String> {
    schema.get("properties").map(|properties| {
        let required = items(&schema["required"]);
        let name = |name: &String| {
            let mark = if required.contains(&Value::from(name.as_str())) { " *" } else { "" };
            format!("<code>{}</code>{mark}", escape(name))
        };
        let all: String = entries(properties).map(|(key, schema)| table_row(&name(key), schema)).collect();
        format!("<table>{all}</table>")
    })
}

fn headers_table<'a>(all: impl Iterator<Item = (&'a String, &'a Value)>) -> String {
    let all: String = all.map(|(name, header)| table_row(&format!("<code>{name}</code>"), header)).collect();
    format!("<table>{all}</table>")
}

fn table_row(name: &str, schema: &Value) -> String {
    let value = schema.get("schema").unwrap_or(schema);
    format!("<tr><th>{name}<td class=\"type\">{}<td>{}", type_text(value), prose(&schema["description"]))
}

/// The type of a schema, in a few words.
fn type_text(schema: &Value) -> String {
    if let Some(name) = ref_name(schema) {
        return type_link(name);
    }
    if let Some(value) = schema.get("const") {
        return format!("<code>{}</code>", escape(&value.to_string()));
    }
    if let Some(values) = schema.get("enum") {
        let values = items(values).iter().map(|value| format!("<code>{}</code>", escape(&value.to_string())));
        return values.collect::<Vec<_>>().join(" or ");
    }
    if let Some(kinds) = schema.get("anyOf").or(schema.get("oneOf")) {
        return items(kinds).iter().map(type_text).collect::<Vec<_>>().join(" or ");
    }
    let kinds: Vec<String> = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().map(escaped_str).collect(),
        Value::Null => vec!["anything".to_owned()],
        kind => vec![escaped_str(kind)],
    };
    let of_items = schema.get("items").map(|items| format!(" of {}", type_text(items))).unwrap_or_default();
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

fn type_link(name: &str) -> String {
    format!("<a href=\"#{name}\"><code>{name}</code></a>")
}

/// The name of the component that a `$ref` refers to.
fn ref_name(value: &Value) -> Option<&str> {
    value.get("$ref")?.as_str()?.rsplit('/').next()
}

/// Paragraphs, with code between backticks.
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

fn escaped_str(value: &Value) -> String {
    escape(value.as_str().unwrap_or_default())
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}
