//! A reader of Rust source that is good enough to tell which file uses which: it follows `use` trees, paths
//! in expressions, inline modules and re-exports, and leaves out tests.

use std::collections::{BTreeMap, BTreeSet};

/// A path below the crate's root, such as `["kernels", "isa", "Isa"]`.
type Path = Vec<String>;

/// The source files of a crate by module path; the root is the empty path.
pub struct Crate {
    modules: BTreeMap<Path, Module>,
}

/// One source file.
#[derive(Default)]
struct Module {
    /// Name of the file below `src/`.
    file: String,
    /// Names that `use` declarations bind, with the paths that they stand for.
    bindings: BTreeMap<String, Path>,
    /// Modules whose public items are all bound here, by `use …::*`.
    globs: Vec<Path>,
    /// Items that are defined here.
    items: BTreeSet<String>,
    /// Paths that the code names, each from the crate's root.
    used: Vec<Path>,
}

impl Crate {
    /// Reads source files, given as names below `src/` and texts.
    pub fn parse(sources: &[(String, String)]) -> Self {
        let tokens: Vec<Vec<Token>> = sources.iter().map(|(_, text)| without_tests(tokenize(text))).collect();
        let paths: BTreeSet<Path> = sources.iter().map(|(file, _)| module_path(file)).collect();
        let modules = sources
            .iter()
            .zip(&tokens)
            .map(|((file, _), tokens)| (module_path(file), Reader::new(file, tokens, &paths).read()));
        Self { modules: modules.collect() }
    }

    /// The files that each file uses.
    pub fn dependencies(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let targets = |module: &Module| -> BTreeSet<&str> {
            let found = module.used.iter().filter_map(|path| self.file_of(path, 8));
            found.filter(|file| *file != module.file).collect()
        };
        self.modules.values().map(|module| (module.file.as_str(), targets(module))).collect()
    }

    /// The file that defines what `path` names; re-exports are followed up to `depth` times.
    fn file_of(&self, path: &[String], depth: usize) -> Option<&str> {
        let len = (0..=path.len()).rev().find(|&len| self.modules.contains_key(&path[..len]))?;
        let module = &self.modules[&path[..len]];
        let Some(name) = path.get(len) else { return Some(&module.file) };
        if depth > 0 && !module.items.contains(name) {
            if let Some(target) = module.bindings.get(name) {
                let full = [&target[..], &path[len + 1..]].concat();
                return self.file_of(&full, depth - 1);
            }
            for glob in &module.globs {
                let full = [&glob[..], &path[len..]].concat();
                if let Some(file) = self.file_of(&full, depth - 1)
                    && self.defines(file, name)
                {
                    return Some(file);
                }
            }
        }
        Some(&module.file)
    }

    fn defines(&self, file: &str, name: &str) -> bool {
        self.modules.values().any(|module| module.file == file && module.items.contains(name))
    }
}

/// The sets of nodes that can reach each other, largest first; nodes on no circle are left out.
pub fn circles<'a>(graph: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> Vec<BTreeSet<&'a str>> {
    let reachable = |start: &'a str| {
        let mut seen = BTreeSet::new();
        let mut left = vec![start];
        while let Some(node) = left.pop() {
            for &next in graph.get(node).into_iter().flatten() {
                if seen.insert(next) {
                    left.push(next);
                }
            }
        }
        seen
    };
    let reach: BTreeMap<&str, BTreeSet<&str>> = graph.keys().map(|&node| (node, reachable(node))).collect();
    let mut found: BTreeSet<BTreeSet<&str>> = BTreeSet::new();
    for (node, targets) in &reach {
        if targets.contains(node) {
            found.insert(targets.iter().copied().filter(|target| reach[target].contains(node)).collect());
        }
    }
    let mut found: Vec<_> = found.into_iter().collect();
    found.sort_by_key(|circle| std::cmp::Reverse(circle.len()));
    found
}

/// The module path of a file: `a/b.rs` and `a/b/mod.rs` are `a::b`.
fn module_path(file: &str) -> Path {
    let stem = file.trim_end_matches(".rs");
    let stem = stem.strip_suffix("/mod").unwrap_or(stem);
    if stem == "lib" { Vec::new() } else { stem.split('/').map(str::to_owned).collect() }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    /// `::`
    PathSep,
    Symbol(char),
}

impl Token {
    fn is(&self, symbol: char) -> bool {
        *self == Self::Symbol(symbol)
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self, Self::Word(found) if found == word)
    }
}

/// Words and symbols of `text`, without comments and literals.
fn tokenize(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut tokens = Vec::new();
    let mut i = 0;
    while i < chars.len() {
        match (at(i), at(i + 1)) {
            ('/', '/') => {
                while i < chars.len() && at(i) != '\n' {
                    i += 1
                }
            }
            ('/', '*') => {
                i += 2;
                while i < chars.len() && (at(i), at(i + 1)) != ('*', '/') {
                    i += 1;
                }
                i += 2;
            }
            ('"', _) => i = end_of_string(&chars, i),
            ('r', '"' | '#') if raw_string_end(&chars, i).is_some() => {
                i = raw_string_end(&chars, i).unwrap();
            }
            ('\'', '\\') => {
                i += 3;
                while i < chars.len() && at(i) != '\'' {
                    i += 1;
                }
                i += 1;
            }
            ('\'', _) if at(i + 2) == '\'' => i += 3,
            (':', ':') => {
                tokens.push(Token::PathSep);
                i += 2;
            }
            (c, _) if is_word(c) => {
                let start = i;
                while i < chars.len() && is_word(at(i)) {
                    i += 1;
                }
                tokens.push(Token::Word(chars[start..i].iter().collect()));
            }
            (c, _) => {
                if !c.is_whitespace() {
                    tokens.push(Token::Symbol(c));
                }
                i += 1;
            }
        }
    }
    tokens
}

/// The position behind the string literal that begins at `start`.
fn end_of_string(chars: &[char], start: usize) -> usize {
    let mut i = start + 1;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

/// The position behind the raw string literal that begins at `start`, if one does.
fn raw_string_end(chars: &[char], start: usize) -> Option<usize> {
    if start > 0 && (chars[start - 1].is_alphanumeric() || chars[start - 1] == '_') && chars[start - 1] != 'b'
    {
        return None;
    }
    let n_hashes = chars[start + 1..].iter().take_while(|&&c| c == '#').count();
    let open = start + 1 + n_hashes;
    if chars.get(open) != Some(&'"') {
        return None;
    }
    let close: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', n_hashes)).collect();
    let len = chars[open + 1..].windows(close.len()).position(|window| window == close)?;
    Some(open + 1 + len + close.len())
}

/// Leaves out items behind `#[cfg(test)]`.
fn without_tests(tokens: Vec<Token>) -> Vec<Token> {
    let marker = ['#', '['].map(Token::Symbol).into_iter();
    let marker = marker.chain([Token::Word("cfg".into()), Token::Symbol('('), Token::Word("test".into())]);
    let marker: Vec<Token> = marker.chain([')', ']'].map(Token::Symbol)).collect();
    let mut kept = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        if !tokens[i..].starts_with(&marker) {
            kept.push(tokens[i].clone());
            i += 1;
            continue;
        }
        // The item ends with a semicolon or with the block that it opens.
        let mut depth = 0;
        while i < tokens.len() {
            i += 1;
            match &tokens[i - 1] {
                Token::Symbol('{') => depth += 1,
                Token::Symbol('}') if depth == 1 => break,
                Token::Symbol('}') => depth -= 1,
                Token::Symbol(';') if depth == 0 => break,
                _ => {}
            }
        }
    }
    kept
}

/// Reads one file.
struct Reader<'a> {
    paths: &'a BTreeSet<Path>,
    tokens: &'a [Token],
    module: Module,
    /// Names bound by `pub use`, which count as used only where the code names them.
    exported: Vec<(String, Path)>,
    /// First words of all paths outside `use` declarations.
    words: BTreeSet<String>,
}

impl<'a> Reader<'a> {
    fn new(file: &str, tokens: &'a [Token], paths: &'a BTreeSet<Path>) -> Self {
        let module = Module { file: file.to_owned(), ..Module::default() };
        Self { paths, tokens, module, exported: Vec::new(), words: BTreeSet::new() }
    }

    fn read(mut self) -> Module {
        let path = module_path(&self.module.file);
        // Names of the inline modules around the position, and the depth of braces outside each.
        let mut inline: Vec<(String, usize)> = Vec::new();
        let mut depth = 0;
        let mut i = 0;
        while let Some(token) = self.tokens.get(i) {
            let names = inline.iter().map(|(name, _)| name.clone());
            let scope: Path = path.iter().cloned().chain(names).collect();
            match token {
                Token::Symbol('{') => depth += 1,
                Token::Symbol('}') => {
                    depth -= 1;
                    inline.pop_if(|(_, outside)| *outside == depth);
                }
                Token::Word(word) if word == "mod" && self.tokens.get(i + 2).is_some_and(|t| t.is('{')) => {
                    i += 1;
                    if let Token::Word(name) = &self.tokens[i] {
                        inline.push((name.clone(), depth));
                    }
                }
                Token::Word(word) if word == "use" => {
                    i = self.read_use(i, &scope);
                    continue;
                }
                Token::Word(_) => i = self.read_path(i, &scope, depth == inline.len()),
                _ => {}
            }
            i += 1;
        }
        let (exported, words) = (self.exported, self.words);
        let used = exported.into_iter().filter(|(name, _)| words.contains(name)).map(|(_, path)| path);
        self.module.used.extend(used);
        self.module
    }

    /// Reads the `use` declaration at `start` and returns the position behind it.
    fn read_use(&mut self, start: usize, scope: &[String]) -> usize {
        let before = start.checked_sub(1).map(|before| &self.tokens[before]);
        let is_export = before.is_some_and(|token| token.is_word("pub") || token.is(')'));
        let mut leaves = Vec::new();
        let end = self.use_tree(start + 1, Vec::new(), &mut leaves);
        for (path, name) in leaves {
            let Some(path) = self.resolve(scope, &path) else { continue };
            if name == "*" {
                self.module.used.push(path.clone());
                self.module.globs.push(path);
                continue;
            }
            // A module is used where something of it is named.
            if !self.paths.contains(&path) {
                if is_export {
                    self.exported.push((name.clone(), path.clone()));
                } else {
                    self.module.used.push(path.clone());
                }
            }
            self.module.bindings.insert(name, path);
        }
        end
    }

    /// Reads the path at `start` and returns the position of its last word. An item's keyword at the top of a
    /// module (`is_top`) adds the item's name.
    fn read_path(&mut self, start: usize, scope: &[String], is_top: bool) -> usize {
        const ITEMS: [&str; 9] =
            ["fn", "struct", "enum", "trait", "const", "static", "type", "union", "macro_rules"];
        let mut path = Vec::new();
        let mut i = start;
        while let Some(Token::Word(word)) = self.tokens.get(i) {
            path.push(word.clone());
            if self.tokens.get(i + 1) != Some(&Token::PathSep) {
                break;
            }
            i += 2;
        }
        let end = start + 2 * (path.len() - 1);
        if is_top && ITEMS.contains(&path[0].as_str()) {
            // `macro_rules!` has a symbol before the name.
            let name = self.tokens[start + 1..].iter().find(|token| !token.is('!'));
            if let Some(Token::Word(name)) = name {
                self.module.items.insert(name.clone());
            }
        }
        if path.len() > 1 {
            self.module.used.extend(self.resolve(scope, &path));
        }
        self.words.insert(path.swap_remove(0));
        end
    }

    /// Reads a use tree from `i` on; pushes its leaves, each a path and the name that it binds, and returns the
    /// position behind it.
    fn use_tree(&self, mut i: usize, mut prefix: Path, leaves: &mut Vec<(Path, String)>) -> usize {
        loop {
            match self.tokens.get(i) {
                Some(Token::Word(word)) if word == "as" => {
                    if let Some(Token::Word(name)) = self.tokens.get(i + 1) {
                        leaves.push((prefix, name.clone()));
                    }
                    return i + 2;
                }
                Some(Token::Word(word)) => {
                    if word != "self" || prefix.is_empty() {
                        prefix.push(word.clone());
                    }
                    i += 1;
                }
                Some(Token::PathSep) => i += 1,
                Some(Token::Symbol('*')) => {
                    leaves.push((prefix, "*".to_owned()));
                    return i + 1;
                }
                Some(Token::Symbol('{')) => {
                    i += 1;
                    while !self.tokens[i].is('}') {
                        i = self.use_tree(i, prefix.clone(), leaves);
                        if self.tokens[i].is(',') {
                            i += 1;
                        }
                    }
                    return i + 1;
                }
                _ => {
                    if let Some(name) = prefix.last().cloned() {
                        leaves.push((prefix, name));
                    }
                    return i;
                }
            }
        }
    }

    /// `path` as written in the module `scope`, from the crate's root; `None` where it leads to another crate
    /// or to an item of this file.
    fn resolve(&self, scope: &[String], path: &[String]) -> Option<Path> {
        match path[0].as_str() {
            "crate" => Some(path[1..].to_vec()),
            "self" => Some([scope, &path[1..]].concat()),
            "super" => {
                let n_up = path.iter().take_while(|segment| *segment == "super").count();
                let scope = &scope[..scope.len().checked_sub(n_up)?];
                Some([scope, &path[n_up..]].concat())
            }
            first => {
                let child = [scope, &path[..1]].concat();
                if self.paths.contains(&child) {
                    return Some([scope, path].concat());
                }
                let target = self.module.bindings.get(first)?;
                Some([&target[..], &path[1..]].concat())
            }
        }
    }
}

#[test]
fn every_form_of_import_is_read() {
    let source = |file: &str, text: &str| (file.to_owned(), text.to_owned());
    let sources = [
        source("lib.rs", "pub mod a;\npub mod b;\nmod c;"),
        source(
            "a/mod.rs",
            "mod x;\nmod y;\npub use x::X;\npub use y::{Y, Z as W};\n// crate::c::nothing\n\
             const TEXT: &str = \"crate::c\";\nfn f() -> Y { y::make() }",
        ),
        source(
            "a/x.rs",
            "use super::W;\nuse crate::b;\npub struct X(W);\nfn g() { b::inner::h::<u8>(b'\\''); }",
        ),
        source("a/y.rs", "pub struct Y;\npub struct Z;\nmod inline { use super::super::x::X; }"),
        source("b/mod.rs", "pub mod inner;\npub use inner::*;"),
        source("b/inner.rs", "pub fn h<T>(_: T) {}\n#[cfg(test)]\nmod tests { use crate::c::C; fn t() {} }"),
        source("c.rs", "use crate::{a::{X, W}, b::h};\n#[cfg(test)]\nuse crate::b::inner;\npub struct C;"),
    ];
    let parsed = Crate::parse(&sources);
    let found = parsed.dependencies();
    let expected = [
        ("lib.rs", vec![]),
        ("a/mod.rs", vec!["a/y.rs"]),
        ("a/x.rs", vec!["a/y.rs", "b/inner.rs"]),
        ("a/y.rs", vec!["a/x.rs"]),
        ("b/mod.rs", vec!["b/inner.rs"]),
        ("b/inner.rs", vec![]),
        ("c.rs", vec!["a/x.rs", "a/y.rs", "b/inner.rs"]),
    ];
    for (file, targets) in expected {
        assert_eq!(found[file], targets.into_iter().collect(), "{file}");
    }
    assert_eq!(circles(&found), [BTreeSet::from(["a/x.rs", "a/y.rs"])]);
}
