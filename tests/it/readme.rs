//! README.md has tables of what the code knows: they are made from it, and these tests see that they still are.

use std::{env, fs};

use predict_otron_9000::openai::params::{self, Rows, Treatment};
use predict_otron_9000::registry::{CatalogEntry, ModelKind, catalog_entries, readable_size};

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");

/// Holds what stands in the README between two comments against what the code says.
fn check(source: &str, expected: &str) {
    let start = format!("<!-- The tables up to the next comment are made from {source}. -->\n");
    let end = format!("<!-- End of the tables made from {source}. -->");
    let readme = fs::read_to_string(README).unwrap();
    let (before, rest) = readme.split_once(&start).unwrap();
    let (found, after) = rest.split_once(&end).unwrap();
    if env::var_os("UPDATE_README").is_some() {
        fs::write(README, [before, &start, expected, &end, after].concat()).unwrap();
    } else if found != expected {
        panic!("README.md is behind {source}; run UPDATE_README=1 cargo test --release readme");
    }
}

#[test]
fn the_tables_are_those_of_the_code() {
    // One after the other, since both may write the file.
    check("src/registry/catalog", &catalog());
    check("src/openai/params.rs", &parameters());
}

fn parameters() -> String {
    let routes =
        [("chat", params::CHAT), ("completions", params::COMPLETIONS), ("embeddings", params::EMBEDDINGS)];
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in routes.iter().flat_map(|(_, rows)| rows.iter().copied().flatten()) {
        if !names.contains(name) {
            names.push(name);
        }
    }
    let treatment =
        |rows: Rows, name: &str| match rows.iter().copied().flatten().find(|(row, _)| *row == name) {
            None => String::new(),
            Some((_, Treatment::Honoured)) => "yes".to_owned(),
            Some((_, Treatment::Ignored)) => "named".to_owned(),
            Some((_, Treatment::OnlyDefault { reason, .. })) => format!("refused: {reason}"),
        };
    let row = |name: &&str| {
        let cells: Vec<String> = routes.iter().map(|(_, rows)| treatment(rows, name)).collect();
        format!("| `{name}` | {} |\n", cells.join(" | "))
    };
    let columns: Vec<&str> = routes.iter().map(|(route, _)| *route).collect();
    let rows: String = names.iter().map(row).collect();
    format!("\n| parameter | {} |\n|{}\n{rows}\n", columns.join(" | "), " --- |".repeat(1 + columns.len()))
}

fn rows_of(kind: ModelKind) -> Vec<&'static CatalogEntry> {
    catalog_entries().filter(|row| row.kind == kind).collect()
}

fn catalog() -> String {
    let chat =
        table("Chat", ["name", "file", "size", "licence", "tested here"], &rows_of(ModelKind::Chat), |row| {
            [name(row), link(row, row.source.main.path), size(row), row.license.into(), tested(row)]
        });
    let columns = [
        "name",
        "repository",
        "size",
        "licence",
        "pooling",
        "before a query",
        "before a document",
        "tested here",
    ];
    let embedding = table("Embeddings", columns, &rows_of(ModelKind::Embedding), |row| {
        let spec = row.embedding.unwrap();
        let [query, document] = [spec.prefixes.query, spec.prefixes.document].map(quoted);
        let pooling = spec.pooling.to_string();
        [name(row), repository(row), size(row), row.license.into(), pooling, query, document, tested(row)]
    });
    let columns = ["name", "repository", "size", "licence", "tested here"];
    let reranking = table("Reranking", columns, &rows_of(ModelKind::Reranker), |row| {
        [name(row), repository(row), size(row), row.license.into(), tested(row)]
    });
    format!("\n{chat}\n{embedding}\n{reranking}\n")
}

fn table<const N: usize>(
    title: &str,
    columns: [&str; N],
    rows: &[&CatalogEntry],
    cells: fn(&CatalogEntry) -> [String; N],
) -> String {
    let rows: String = rows.iter().map(|row| format!("| {} |\n", cells(row).join(" | "))).collect();
    format!("### {title}\n\n| {} |\n|{}\n{rows}", columns.join(" | "), " --- |".repeat(N))
}

fn name(row: &CatalogEntry) -> String {
    quoted(row.name)
}

fn repository(row: &CatalogEntry) -> String {
    link(row, row.source.repo().unwrap())
}

fn link(row: &CatalogEntry, text: &str) -> String {
    format!("[{text}](https://huggingface.co/{})", row.source.repo().unwrap())
}

fn size(row: &CatalogEntry) -> String {
    readable_size(row.size_bytes)
}

fn tested(row: &CatalogEntry) -> String {
    if row.tested { "yes" } else { "untested" }.to_owned()
}

fn quoted(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{text}`") }
}
