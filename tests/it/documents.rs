//! The documents hold tables generated from the code; these tests check that they are current,
//! that README.md stays short and that links lead somewhere. `UPDATE_DOCS=1 cargo test documents`
//! rewrites the tables.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use clap::builder::StyledStr;
use clap::{Arg, ArgAction, Command, CommandFactory};
use predict_otron_9000::config::{Args, Limits};
use predict_otron_9000::openai::params::{self, ParamTable, Treatment};
use predict_otron_9000::registry::{CatalogEntry, ModelKind, catalog_entries, readable_size};
use serde_json::Value;

use crate::support::{ENGINE_OPTIONS, Script, json as body, scripted_server};

/// Every document, by its path in the repository.
const DOCUMENTS: [&str; 14] = [
    "README.md",
    "PERFORMANCE.md",
    "OPTIMIZATIONS.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/API.md",
    "docs/CONFORMANCE.md",
    "docs/MODELS.md",
    "docs/OPERATIONS.md",
    "docs/OPTIONS.md",
    "docs/TERMINAL.md",
    "deploy/README.md",
    "deploy/smg.md",
];

const MAX_README_LINES: usize = 200;

fn path_of(document: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(document)
}

fn read(document: &str) -> String {
    fs::read_to_string(path_of(document)).unwrap_or_else(|e| panic!("{document}: {e}"))
}

/// Compares what a document has between two comments with what the code says, or rewrites it.
fn check(document: &str, source: &str, expected: &str) {
    let start = format!("<!-- Generated from {source}. -->\n");
    let end = format!("<!-- End of what is generated from {source}. -->");
    let text = read(document);
    let (before, rest) = text.split_once(&start).unwrap_or_else(|| panic!("{document} lacks {start}"));
    let (found, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{document} lacks {end}"));
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(path_of(document), [before, &start, expected, &end, after].concat()).unwrap();
    } else if found != expected {
        panic!("{document} is behind {source}; run UPDATE_DOCS=1 cargo test --release --test it documents");
    }
}

#[tokio::test]
async fn generated_tables_are_current() {
    // One after the other: two of them are in one file.
    check("docs/API.md", "/openapi.json", &routes().await);
    check("docs/API.md", "src/openai/params.rs", &parameters());
    check("docs/MODELS.md", "src/registry/catalog", &catalog());
    check("docs/OPERATIONS.md", "src/telemetry.rs", &metrics());
    check("docs/OPTIONS.md", "the command line's definition in src/config", &options());
}

#[test]
fn readme_is_short() {
    let n_lines = read("README.md").lines().count();
    assert!(n_lines <= MAX_README_LINES, "README.md has {n_lines} lines; move something to docs/");
}

#[test]
fn relative_links_resolve() {
    let mut broken = Vec::new();
    for document in DOCUMENTS {
        for target in links(&read(document)) {
            if target.contains("://") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let path = match file {
                "" => path_of(document),
                file => path_of(document).parent().unwrap().join(file),
            };
            let found = match fs::read_to_string(&path) {
                Ok(text) => anchor.is_empty() || anchors(&text).iter().any(|known| known == anchor),
                Err(_) => path.exists() && anchor.is_empty(),
            };
            if !found {
                broken.push(format!("{document}: {target}"));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere: {broken:#?}");
}

/// The text without its code blocks.
fn prose(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

/// Targets of the links in a document.
fn links(text: &str) -> Vec<String> {
    let text = prose(text);
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target.to_owned()).collect()
}

/// Anchors of a document's headings, as renderers of Markdown make them.
fn anchors(text: &str) -> Vec<String> {
    let text = prose(text);
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

async fn routes() -> String {
    let server = scripted_server(Script::saying("abc"), Limits::default(), ENGINE_OPTIONS).await;
    let document: Value = body(server.get("/openapi.json").await).await;
    let mut rows = String::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let summary = operation["summary"].as_str().unwrap();
            writeln!(rows, "| `{} {path}` | {summary} |", method.to_uppercase()).unwrap();
        }
    }
    format!("\n| route | what it does |\n| --- | --- |\n{rows}\n")
}

/// The table of metrics, read from the source: names and help texts are its only string literals.
fn metrics() -> String {
    let source = read("src/telemetry.rs");
    let table = source.split_once("metrics_table! {").and_then(|(_, rest)| rest.split_once("\n}"));
    let literals: Vec<&str> = table.expect("the table of metrics").0.split('"').collect();
    let rows: String = literals
        .chunks_exact(4)
        .map(|row| {
            let [before, name, _, help] = row else { unreachable!() };
            let kind = before.split_whitespace().rev().nth(2).unwrap_or_default();
            let kind = kind.trim_end_matches("Family").to_lowercase();
            format!("| `{name}` | {kind} | {help} |\n")
        })
        .collect();
    format!("\n| metric | kind | meaning |\n| --- | --- | --- |\n{rows}\n")
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
        |rows: ParamTable, name: &str| match rows.iter().copied().flatten().find(|(row, _)| *row == name) {
            None => String::new(),
            Some((_, Treatment::Honored | Treatment::Parsed)) => "yes".to_owned(),
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

fn options() -> String {
    let mut command = Args::command();
    command.build();
    let mut text = String::new();
    for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
        let about = subcommand.get_about().map(StyledStr::to_string).unwrap_or_default();
        write!(text, "\n## `{}`\n\n{about}.\n", subcommand.get_name()).unwrap();
        if subcommand.get_name() == "config" {
            text += "\nIts options are those of `serve`.\n";
            continue;
        }
        for heading in headings(subcommand) {
            if let Some(heading) = &heading {
                write!(text, "\n### {heading}\n").unwrap();
            }
            text += "\n| flag | variable | default | meaning |\n| --- | --- | --- | --- |\n";
            let args = subcommand.get_arguments().filter(|arg| is_shown(arg));
            for arg in args.filter(|arg| arg.get_help_heading() == heading.as_deref()) {
                text += &option(arg);
            }
        }
    }
    text + "\n"
}

fn is_shown(arg: &Arg) -> bool {
    !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version")
}

/// Headings of a command's options, in the order of the help text; none for options without one.
fn headings(command: &Command) -> Vec<Option<String>> {
    let mut headings: Vec<Option<String>> = Vec::new();
    for arg in command.get_arguments().filter(|arg| is_shown(arg)) {
        let heading = arg.get_help_heading().map(str::to_owned);
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    headings
}

/// A row of the table of options. A help text may end with the default where clap cannot know it.
fn option(arg: &Arg) -> String {
    let help = arg.get_help().map(StyledStr::to_string).unwrap_or_default().replace('|', "\\|");
    let (help, computed) = match help.split_once(" [default: ") {
        Some((help, default)) => (help, Some(default.trim_end_matches(']').to_owned())),
        None => (&*help, None),
    };
    let flag = match (arg.get_long(), arg.get_short()) {
        (Some(long), Some(short)) => format!("`-{short}`, `--{long}`"),
        (Some(long), None) => format!("`--{long}`"),
        _ => format!("`{}`", arg.get_id().as_str().to_uppercase()),
    };
    let variable = arg.get_env().map(|name| quoted(&name.to_string_lossy())).unwrap_or_default();
    let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let default = match computed {
        Some(default) => default,
        None if is_switch => "off".to_owned(),
        None => quoted(&defaults.join(",")),
    };
    let values: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter(|_| !is_switch)
        .map(|value| quoted(value.get_name()))
        .collect();
    let values = if values.is_empty() { String::new() } else { format!(" ({})", values.join(", ")) };
    format!("| {flag} | {variable} | {default} | {help}{values} |\n")
}

fn rows_of(kind: ModelKind) -> Vec<&'static CatalogEntry> {
    catalog_entries().filter(|row| row.kind == kind).collect()
}

fn catalog() -> String {
    let chat =
        table("Chat", ["name", "file", "size", "license", "tested here"], &rows_of(ModelKind::Chat), |row| {
            [name(row), link(row, row.source.main.path), size(row), row.license.into(), tested(row)]
        });
    let columns = [
        "name",
        "repository",
        "size",
        "license",
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
    let columns = ["name", "repository", "size", "license", "tested here"];
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
    if row.tested { "family and file" } else { "family" }.to_owned()
}

fn quoted(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{text}`") }
}
