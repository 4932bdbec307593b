//! README.md has the catalog's tables, made from the rows.

use std::{env, fs};

use super::{CatalogEntry, chat, embedding, reranking};
use crate::registry::readable_size;

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
const START: &str = "<!-- The tables up to the next comment are made from src/registry/catalog. -->\n";
const END: &str = "<!-- End of the tables made from src/registry/catalog. -->";

#[test]
fn the_tables_in_the_readme_are_those_of_the_catalog() {
    let readme = fs::read_to_string(README).unwrap();
    let (before, rest) = readme.split_once(START).unwrap();
    let (found, after) = rest.split_once(END).unwrap();
    let expected = tables();
    if env::var_os("UPDATE_README").is_some() {
        fs::write(README, [before, START, &expected, END, after].concat()).unwrap();
    } else if found != expected {
        panic!("README.md is behind the catalog; run UPDATE_README=1 cargo test --release --lib readme");
    }
}

fn tables() -> String {
    let chat = table("Chat", ["name", "file", "size", "licence", "tested here"], chat::ROWS, |row| {
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
    let embedding = table("Embeddings", columns, embedding::ROWS, |row| {
        let spec = row.embedding.unwrap();
        let [query, document] = [spec.prefixes.query, spec.prefixes.document].map(quoted);
        let pooling = spec.pooling.to_string();
        [name(row), repository(row), size(row), row.license.into(), pooling, query, document, tested(row)]
    });
    let columns = ["name", "repository", "size", "licence", "tested here"];
    let reranking = table("Reranking", columns, reranking::ROWS, |row| {
        [name(row), repository(row), size(row), row.license.into(), tested(row)]
    });
    format!("\n{chat}\n{embedding}\n{reranking}\n")
}

fn table<const N: usize>(
    title: &str,
    columns: [&str; N],
    rows: &[CatalogEntry],
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
