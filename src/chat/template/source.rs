//! What is done to a template's text before minijinja parses it.

/// Line ends become `\n`, as Jinja2's lexer makes them, and the `generation` block, with which
/// `transformers` marks the assistant's tokens, a block that does nothing else than have a scope.
pub fn prepare(template: &str) -> String {
    let template = template.replace("\r\n", "\n").replace('\r', "\n");
    let mut prepared = String::with_capacity(template.len());
    let mut rest = template.as_str();
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        prepared.push_str(before);
        rest = tag;
        let Some(inside) = tag.find("%}").map(|end| &tag[..end]) else { break };
        let name = inside.trim_matches(|c: char| "+-".contains(c) || c.is_whitespace());
        let replacement = match name {
            "generation" => "with",
            "endgeneration" => "endwith",
            _ => continue,
        };
        prepared.push_str(&inside.replace(name, replacement));
        rest = &tag[inside.len()..];
    }
    prepared + rest
}
