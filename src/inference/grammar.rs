//! Texts that must be what a grammar says: which tokens may come next, and nothing else does.
//!
//! The parsing is done by the `llguidance` crate, which is named nowhere else. What is ours: its vocabulary is
//! the [`Tokenizer`]'s; a token that is drawn is only looked at itself, and what else may come is worked out
//! when it may not; where that happened last, on a thread of its own while the model computes the next logits; and
//! everything has a bound. Whatever goes wrong ends the text with an error; a text that was to be constrained never
//! goes on without it.

use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::toktrie::{SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};
use serde_json::{Map, Value};

use crate::error::{Error, Kind, Result};
use crate::telemetry;
use crate::tokenizer::Tokenizer;

/// Most bytes of a grammar, all schemas in it together.
pub const MAX_GRAMMAR_BYTES: usize = 128 << 10;

/// Grammars are read by recursion, as deep as one of the most bytes can make it.
const COMPILE_STACK_BYTES: usize = 128 << 20;
const MASK_STACK_BYTES: usize = 16 << 20;

/// How long it may take to work out which tokens may come next. Usually it is some 50 µs.
const MASK_TIME: Duration = Duration::from_secs(1);

/// White space between the parts of JSON: none, one space, or a new line and its indentation. Were there no
/// bound to it, a model could go on with it for ever.
const JSON_SPACE: &str = r" |\n {0,32}";

/// What a text must be.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// JSON that a schema describes.
    JsonSchema(Value),
    /// What a regular expression matches, from beginning to end.
    Regex(String),
    /// One of several strings.
    Choice(Vec<String>),
    /// What rules of Lark's kind say, as llguidance reads them; they know each part by its name, `@name`.
    Lark { rules: String, parts: Vec<(String, Grammar)> },
}

/// Compiles grammars for a vocabulary.
pub struct Grammars {
    tokenizer: Arc<Tokenizer>,
    n_vocab: usize,
    /// Made when the first grammar comes.
    factory: OnceLock<Result<ParserFactory>>,
    jobs: mpsc::Sender<Job>,
}

/// Which tokens may come next.
#[derive(Clone)]
pub struct TokenSet(SimpleVob);

/// A matcher that is to say which tokens may come next, and where to send both.
struct Job {
    matcher: Box<Matcher>,
    done: mpsc::Sender<(Box<Matcher>, Result<TokenSet>)>,
}

/// The grammar of one text, at the place that the text has reached. A clone is at the same place of a text of
/// its own.
pub struct Constraint {
    place: Place,
    /// What may come before the part that the grammar is about.
    preamble: Option<Preamble>,
    state: State,
    /// Whether the last token that was drawn could not come: then the next one may not either.
    was_refused: bool,
    jobs: mpsc::Sender<Job>,
}

/// Text before the part that a grammar is about, such as a thought.
#[derive(Debug, Clone)]
pub struct Preamble {
    /// The token that begins it, where the text itself may begin it.
    pub open: Option<u32>,
    /// Whether it has begun before the text.
    pub is_open: bool,
    /// What ends it.
    pub close: String,
}

#[derive(Debug, Clone)]
enum Place {
    /// The first token decides whether there is a preamble.
    Beginning,
    /// In the preamble, and what may be the beginning of its end.
    Preamble(Vec<u8>),
    Within,
}

enum State {
    /// What may come next is not known.
    Idle(Box<Matcher>),
    /// It is being worked out.
    Busy {
        matcher: mpsc::Receiver<(Box<Matcher>, Result<TokenSet>)>,
        cancel: Option<Cancel>,
    },
    Known(Box<Matcher>, TokenSet),
    Failed(Error),
}

type Cancel = llguidance::CancellationHandle;

impl TokenSet {
    /// Makes the logits of all tokens but these minus infinity.
    pub fn keep_in(&self, logits: &mut [f32]) {
        let words = self.0.as_slice().iter().chain(std::iter::repeat(&0));
        for (&word, logits) in words.zip(logits.chunks_mut(u32::BITS as usize)) {
            match word {
                0 => logits.fill(f32::NEG_INFINITY),
                u32::MAX => {}
                word => {
                    let others = logits.iter_mut().enumerate().filter(|(bit, _)| word >> bit & 1 == 0);
                    others.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
                }
            }
        }
    }

    /// Whether there are others than `tokens` in it.
    pub fn has_others_than(&self, tokens: &[u32]) -> bool {
        let n_in = tokens.iter().filter(|&&token| self.0.get(token as usize)).count();
        self.0.num_set() > n_in
    }
}

impl Grammars {
    /// For a model with `n_vocab` logits.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn new(tokenizer: Arc<Tokenizer>, n_vocab: usize) -> Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        thread::Builder::new()
            .name("grammar".to_owned())
            .stack_size(MASK_STACK_BYTES)
            .spawn(move || queue.into_iter().for_each(Job::run))
            .map_err(|e| Error::internal(format!("cannot start the grammar thread: {e}")))?;
        Ok(Self { tokenizer, n_vocab, factory: OnceLock::new(), jobs })
    }

    /// Compiles a grammar. A text that follows it ends where the grammar does.
    ///
    /// # Errors
    /// When it is too large or too complex, cannot be read, or says what cannot be enforced.
    pub fn compile(&self, grammar: &Grammar) -> Result<Constraint> {
        let grammar = grammar.resolve()?;
        let factory = self.factory.get_or_init(|| self.factory()).as_ref().map_err(Clone::clone)?;
        let compiled = thread::scope(|scope| {
            let compile = || factory.create_parser(grammar).map_err(|e| refused(&e.to_string()));
            let thread = thread::Builder::new().stack_size(COMPILE_STACK_BYTES).spawn_scoped(scope, compile);
            let thread =
                thread.map_err(|e| Error::internal(format!("cannot start a thread for a grammar: {e}")))?;
            thread.join().unwrap_or_else(|_| Err(refused("it is too complex")))
        });
        let matcher = Box::new(Matcher::new(Ok(compiled?)).into_cancellable());
        let mut constraint = Constraint {
            place: Place::Within,
            preamble: None,
            state: State::Idle(matcher),
            was_refused: false,
            jobs: self.jobs.clone(),
        };
        // Whether anything can follow it shows here, before the prompt is computed.
        constraint.allowed().map(drop).map_err(|e| refused(&e.to_string()))?;
        Ok(constraint)
    }

    fn factory(&self) -> Result<ParserFactory> {
        let vocabulary: TokEnv = Arc::new(Vocabulary::new(self.tokenizer.clone(), self.n_vocab));
        let mut factory = ParserFactory::new_simple(&vocabulary)
            .map_err(|e| Error::internal(format!("the vocabulary cannot be used with grammars: {e}")))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(factory)
    }
}

impl Grammar {
    /// As llguidance takes it.
    fn resolve(&self) -> Result<TopLevelGrammar> {
        let n_bytes = self.n_bytes();
        if n_bytes > MAX_GRAMMAR_BYTES {
            let message = format!("it has {n_bytes} bytes, and {MAX_GRAMMAR_BYTES} is the limit");
            return Err(refused(&message));
        }
        let mut whole = TopLevelGrammar::from_grammar(self.alone()?);
        if let Self::Lark { parts, .. } = self {
            for (name, part) in parts {
                whole.grammars.push(GrammarWithLexer { name: Some(name.clone()), ..part.alone()? });
            }
        }
        Ok(whole)
    }

    /// The same without its parts, which must not have parts of their own.
    fn alone(&self) -> Result<GrammarWithLexer> {
        Ok(match self {
            Self::JsonSchema(schema) => GrammarWithLexer::from_json_schema(with_options(schema)?),
            Self::Regex(regex) => GrammarWithLexer::from_regex(regex),
            Self::Choice(choices) => {
                let choices: Vec<String> =
                    choices.iter().map(|choice| Value::from(choice.as_str()).to_string()).collect();
                GrammarWithLexer::from_lark(format!("start: {}", choices.join(" | ")))
            }
            Self::Lark { rules, .. } => GrammarWithLexer::from_lark(rules.clone()),
        })
    }

    fn n_bytes(&self) -> usize {
        match self {
            Self::JsonSchema(schema) => schema.to_string().len(),
            Self::Regex(text) => text.len(),
            Self::Choice(choices) => choices.iter().map(|choice| choice.len() + 1).sum(),
            Self::Lark { rules, parts } => {
                rules.len() + parts.iter().map(|(_, part)| part.n_bytes()).sum::<usize>()
            }
        }
    }
}

/// A schema with how its JSON is to be written. Options that it brings itself could loosen what it says.
fn with_options(schema: &Value) -> Result<Value> {
    let mut schema = schema.clone();
    if !schema.is_object() {
        return Err(refused("a schema is a JSON object, such as {\"type\": \"object\"}"));
    }
    for_each_schema(&mut schema, &narrow_times);
    let options = JsonCompileOptions {
        whitespace_pattern: Some(JSON_SPACE.to_owned()),
        ..JsonCompileOptions::default()
    };
    options.apply_to(&mut schema);
    Ok(schema)
}

/// Keeps times to those that programs can read: RFC 3339 allows a second 60, of leap seconds, and a year 0.
fn narrow_times(schema: &mut Map<String, Value>) {
    let pattern = match schema.get("format").and_then(Value::as_str) {
        Some("date") => "^0{0,3}[1-9]",
        Some("date-time") => "^0{0,3}[1-9][^:]*:[^:]*:[0-5]",
        Some("time") => "^[^:]*:[^:]*:[0-5]",
        _ => return,
    };
    schema.entry("pattern").or_insert_with(|| pattern.into());
}

/// Changes a JSON schema and all those in it.
pub fn for_each_schema(schema: &mut Value, change: &impl Fn(&mut Map<String, Value>)) {
    let Value::Object(fields) = schema else { return };
    change(fields);
    for (keyword, value) in fields {
        match (keyword.as_str(), value) {
            ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(schemas)) => {
                schemas.values_mut().for_each(|schema| for_each_schema(schema, change));
            }
            ("prefixItems" | "allOf" | "anyOf" | "oneOf", Value::Array(schemas)) => {
                schemas.iter_mut().for_each(|schema| for_each_schema(schema, change));
            }
            ("items" | "additionalProperties", schema) => for_each_schema(schema, change),
            _ => {}
        }
    }
}

fn refused(why: &str) -> Error {
    let why = match why.trim().strip_prefix("Unimplemented keys: ") {
        Some(keys) => &format!("nothing enforces {keys} of a schema; leave that out"),
        None => why.trim(),
    };
    Error::new(Kind::InvalidRequest, format!("the grammar cannot be enforced: {why}"))
}

impl Constraint {
    /// Lets something come before the part that the grammar is about.
    pub fn after(self, preamble: Preamble) -> Self {
        let place = match preamble {
            Preamble { is_open: true, .. } => Place::Preamble(Vec::new()),
            Preamble { open: Some(_), .. } => Place::Beginning,
            _ => Place::Within,
        };
        Self { place, preamble: Some(preamble), ..self }
    }

    /// Whether the text is in what comes before, and so must not end yet.
    pub fn is_in_preamble(&self) -> bool {
        matches!(self.place, Place::Preamble(_))
    }

    /// Whether it has not been worked out which tokens may come next.
    pub fn is_unknown(&self) -> bool {
        matches!(self.state, State::Idle(_))
    }

    /// Whether a token may come next.
    pub fn accepts(&mut self, token: u32) -> bool {
        let is_accepted = match (&self.place, &mut self.state) {
            (Place::Preamble(_), _) => true,
            (Place::Beginning, _) if self.preamble.as_ref().is_some_and(|p| p.open == Some(token)) => true,
            // What fails here fails again, and is told, where what may come is worked out.
            (_, State::Idle(matcher)) => matcher.validate_tokens(&[token]).is_ok_and(|n| n == 1),
            _ => false,
        };
        self.was_refused = !is_accepted;
        is_accepted
    }

    /// Begins to work out which tokens may come next, if that will be asked for.
    pub fn prepare(&mut self) {
        if std::mem::take(&mut self.was_refused) {
            self.work_out();
        }
    }

    fn work_out(&mut self) {
        if !self.is_unknown() {
            return;
        }
        let (done, matcher) = mpsc::channel();
        let State::Idle(idle) = std::mem::replace(&mut self.state, State::Failed(lost())) else { return };
        let cancel = idle.cancellation_handle();
        if self.jobs.send(Job { matcher: idle, done }).is_ok() {
            self.state = State::Busy { matcher, cancel };
        }
    }

    /// The tokens that may come next, and one that may come beside them; all, where the grammar has nothing to
    /// say yet.
    ///
    /// # Errors
    /// When there is none, or it takes too long to tell.
    pub fn allowed(&mut self) -> Result<Option<(&TokenSet, Option<u32>)>> {
        if self.is_in_preamble() {
            return Ok(None);
        }
        self.work_out();
        if let State::Busy { matcher, cancel } = &self.state {
            let answer = matcher.recv_timeout(MASK_TIME).or_else(|_| {
                cancel.iter().for_each(Cancel::cancel);
                matcher.recv()
            });
            self.state = match answer {
                Ok((matcher, Ok(allowed))) => State::Known(matcher, allowed),
                Ok((_, Err(e))) => State::Failed(e),
                Err(_) => State::Failed(lost()),
            };
        }
        let beside = match (&self.place, &self.preamble) {
            (Place::Beginning, Some(preamble)) => preamble.open,
            _ => None,
        };
        match &self.state {
            State::Known(_, allowed) => Ok(Some((allowed, beside))),
            State::Failed(e) => Err(e.clone()),
            State::Idle(_) | State::Busy { .. } => Err(lost()),
        }
    }

    /// Goes on by a token, which stands for `bytes`; says whether nothing can follow it.
    ///
    /// # Errors
    /// When the token was not allowed, or the text has become too complex.
    pub fn push(&mut self, token: u32, bytes: &[u8]) -> Result<bool> {
        let close = self.preamble.as_ref().map_or("", |preamble| &preamble.close);
        match &mut self.place {
            Place::Beginning if self.preamble.as_ref().is_some_and(|p| p.open == Some(token)) => {
                self.place = Place::Preamble(Vec::new());
                return Ok(false);
            }
            Place::Beginning => self.place = Place::Within,
            Place::Preamble(tail) => {
                tail.extend_from_slice(bytes);
                let end = tail.windows(close.len().max(1)).position(|window| window == close.as_bytes());
                match end.map(|end| tail[end + close.len()..].trim_ascii().is_empty()) {
                    None => {
                        let n_over = tail.len().saturating_sub(close.len());
                        tail.drain(..n_over);
                    }
                    Some(true) => self.place = Place::Within,
                    Some(false) => {
                        return Err(Error::internal("one token ended the thought and began the answer"));
                    }
                }
                return Ok(false);
            }
            Place::Within => {}
        }
        let state = std::mem::replace(&mut self.state, State::Failed(lost()));
        let (State::Idle(mut matcher) | State::Known(mut matcher, _)) = state else {
            self.state = state;
            return Err(lost());
        };
        matcher.consume_token(token).map_err(|e| too_complex(&e.to_string()))?;
        let is_complete = matcher.is_stopped();
        self.state = State::Idle(matcher);
        Ok(is_complete)
    }
}

impl Clone for Constraint {
    fn clone(&self) -> Self {
        let state = match &self.state {
            State::Idle(matcher) => State::Idle(Box::new(matcher.deep_clone())),
            State::Known(matcher, allowed) => State::Known(Box::new(matcher.deep_clone()), allowed.clone()),
            State::Busy { .. } => State::Failed(lost()),
            State::Failed(e) => State::Failed(e.clone()),
        };
        Self {
            place: self.place.clone(),
            preamble: self.preamble.clone(),
            state,
            was_refused: self.was_refused,
            jobs: self.jobs.clone(),
        }
    }
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Constraint").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Job {
    fn run(mut self) {
        let began = std::time::Instant::now();
        let allowed = match self.matcher.compute_mask_or_eos() {
            Ok(allowed) => Ok(TokenSet(allowed)),
            Err(_) if self.matcher.is_cancelled() => Err(too_complex(&format!(
                "it takes more than {} s to tell what may come next",
                MASK_TIME.as_secs()
            ))),
            Err(e) => Err(too_complex(&e.to_string())),
        };
        metrics::histogram!(telemetry::MASK_SECONDS).record(began.elapsed().as_secs_f64());
        // A text that has ended does not wait for it.
        let _ = self.done.send((self.matcher, allowed));
    }
}

fn too_complex(why: &str) -> Error {
    let why = why.lines().next().unwrap_or(why);
    Error::new(
        Kind::InvalidRequest,
        format!("the text could not be kept to its grammar and was ended: {why}; send a simpler one"),
    )
}

fn lost() -> Error {
    Error::internal("the grammar of a text was lost")
}

/// A vocabulary as llguidance sees it.
struct Vocabulary {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
}

impl Vocabulary {
    fn new(tokenizer: Arc<Tokenizer>, n_vocab: usize) -> Self {
        let ids = 0..u32::try_from(n_vocab).unwrap_or(u32::MAX);
        let ends: Vec<u32> =
            tokenizer.end_of_generation().iter().copied().filter(|end| ids.contains(end)).collect();
        let words: Vec<Vec<u8>> = ids
            .clone()
            .map(|id| match tokenizer.token_bytes(id) {
                // The mark of special tokens; no text begins with it.
                [TokTrie::SPECIAL_TOKEN_MARKER, ..] => Vec::new(),
                bytes => bytes.to_vec(),
            })
            .collect();
        let end = ends.first().copied().unwrap_or(u32::MAX);
        let trie = TokTrie::from(&TokRxInfo::new(ids.end, end), &words);
        let trie = if ends.is_empty() { trie } else { trie.with_eos_tokens(&ends) };
        Self { trie, tokenizer }
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        let ids = std::str::from_utf8(bytes).ok().and_then(|text| self.tokenizer.encode(text).ok());
        // A tokenizer may add something to a text or change it.
        ids.filter(|ids| {
            let bytes_of = ids.iter().flat_map(|&id| self.tokenizer.token_bytes(id));
            bytes_of.eq(bytes)
        })
        .unwrap_or_else(|| self.trie.greedy_tokenize(bytes))
    }

    /// Where it does not, what a grammar leaves no choice about need not be said in the tokens a model expects.
    fn tokenize_is_canonical(&self) -> bool {
        !self.tokenizer.has_space_prefix()
    }
}
