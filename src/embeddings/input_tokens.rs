//! Tokenization of a request's inputs, within the limits of the model and of a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::backend::TokenizedInput;
use super::entry::EmbeddingInput;
use super::prompts::SelectedPrompt;
use crate::error::{Error, Kind, Result};
use crate::tokenizer::{BoundedEncoding, Tokenizer};

/// How a model's inputs are tokenized.
pub struct InputRules {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// Maximum number of tokens of an input, the model's first and last special tokens included.
    pub max_tokens: usize,
    /// Whether texts are converted to lower case.
    pub lowercase: bool,
    /// Whether the backend needs texts beside their ids.
    pub needs_text: bool,
}

/// How the inputs of one request are tokenized.
pub struct RequestRules<'a> {
    /// The prompt before each text.
    pub prompt: SelectedPrompt<'a>,
    /// Whether the client chose the prompt; a default prompt is not put before token ids.
    pub is_prompt_chosen: bool,
    /// Whether inputs that are too long are truncated instead of refused.
    pub truncate: bool,
    /// Tokens of a text, or of the second text of a pair, beyond which it is truncated in any case.
    pub max_text_tokens: Option<usize>,
    /// Most tokens of the request.
    pub max_request_tokens: usize,
    /// Set when nobody waits for the request any more.
    pub is_abandoned: &'a AtomicBool,
}

/// The room for the tokens of one text.
struct TextRoom {
    n_tokens: usize,
    /// Whether a text with more is truncated instead of refused.
    truncate: bool,
}

/// Tokenizes the inputs of one request, one after the other.
pub struct RequestTokenizer<'a> {
    model: &'a InputRules,
    request: RequestRules<'a>,
    /// Tokens so far.
    n_tokens: usize,
    /// The first and the second text of the latest pair. Many pairs may share a text, which is encoded once.
    pair_texts: [Option<(Arc<str>, Vec<u32>)>; 2],
}

impl<'a> RequestTokenizer<'a> {
    /// A tokenizer for the inputs of one request.
    pub fn new(model: &'a InputRules, request: RequestRules<'a>) -> Self {
        Self { model, request, n_tokens: 0, pair_texts: [None, None] }
    }

    /// Tokenizes input number `index` of the request, and says whether it is truncated.
    ///
    /// # Errors
    /// When the input or the whole request has too many tokens, ids are outside the vocabulary, or nobody waits for
    /// the request any more.
    pub fn tokenize(&mut self, input: EmbeddingInput, index: usize) -> Result<(TokenizedInput, bool)> {
        let (tokenized, is_truncated) = self.tokenize_uncounted(input, index)?;
        self.n_tokens += tokenized.ids.len();
        if self.n_tokens > self.request.max_request_tokens {
            return Err(Error::invalid(
                "input",
                format!(
                    "the inputs of this request have more than {} tokens in all; send fewer or shorter ones per \
                     request",
                    self.request.max_request_tokens
                ),
            ));
        }
        Ok((tokenized, is_truncated))
    }

    /// Whether an input that is in the cache with `n_tokens` tokens was truncated. Only one that has as many as it may
    /// is tokenized for this.
    ///
    /// # Errors
    /// See [`RequestTokenizer::tokenize`].
    pub fn was_truncated(&mut self, input: EmbeddingInput, index: usize, n_tokens: usize) -> Result<bool> {
        let RequestRules { truncate, max_text_tokens, .. } = self.request;
        // A truncated text has as many tokens as it may have, and the first text of a pair any number.
        let may_be = match max_text_tokens {
            None => truncate && n_tokens == self.model.max_tokens,
            Some(max) => n_tokens >= max.min(self.room(false)),
        };
        Ok(may_be && self.tokenize_uncounted(input, index)?.1)
    }

    fn tokenize_uncounted(&mut self, input: EmbeddingInput, index: usize) -> Result<(TokenizedInput, bool)> {
        if self.request.is_abandoned.load(Ordering::Relaxed) {
            return Err(Error::new(Kind::Unavailable, "the client has disconnected"));
        }
        match input {
            EmbeddingInput::Text(text) => self.text(text, index),
            EmbeddingInput::Tokens(ids) => self.token_ids(&ids, index),
            EmbeddingInput::Pair(first, second) => self.pair(&first, &second, index),
        }
    }

    /// Tokenizes a text, with its prompt before it.
    fn text(&self, text: Arc<str>, index: usize) -> Result<(TokenizedInput, bool)> {
        let InputRules { tokenizer, needs_text, .. } = self.model;
        let text = match (self.request.prompt.prefix, self.model.lowercase) {
            ("", false) => text,
            (prefix, false) => format!("{prefix}{text}").into(),
            (prefix, true) => format!("{prefix}{text}").to_lowercase().into(),
        };
        let room = self.text_room(self.room(false));
        let BoundedEncoding { mut ids, n_bytes } = tokenizer.encode_up_to(&text, room.n_tokens)?;
        let is_truncated = ids.len() > room.n_tokens;
        if is_truncated && !room.truncate {
            return Err(self.too_long(index, (n_bytes == text.len()).then_some(ids.len())));
        }
        ids.truncate(room.n_tokens);
        // A backend with a tokenizer of its own truncates at the same token, and must not get much more text.
        let needed = || if n_bytes == text.len() { text.clone() } else { text[..n_bytes].into() };
        let text = needs_text.then(needed);
        Ok((TokenizedInput { ids: tokenizer.add_template(&ids), text, n_first: None }, is_truncated))
    }

    /// Puts a client's token ids into the model's template.
    fn token_ids(&self, ids: &[u32], index: usize) -> Result<(TokenizedInput, bool)> {
        let RequestRules { prompt, is_prompt_chosen, .. } = &self.request;
        if *is_prompt_chosen && !prompt.prefix.is_empty() {
            let message = "a prompt applies to texts, not to token ids; send strings";
            return Err(Error::invalid("input", message));
        }
        // LangChain's default sends ids of OpenAI's vocabulary.
        let remedy = "send text instead (in LangChain: check_embedding_ctx_length=False)";
        let tokenizer = &self.model.tokenizer;
        tokenizer.check_ids(ids, "input", remedy).map_err(|e| e.context(format!("input {index}")))?;
        let room = self.text_room(self.room(false));
        let is_truncated = ids.len() > room.n_tokens;
        if is_truncated && !room.truncate {
            return Err(self.too_long(index, Some(ids.len())));
        }
        let ids = tokenizer.add_template(&ids[..ids.len().min(room.n_tokens)]);
        Ok((TokenizedInput { ids, text: None, n_first: None }, is_truncated))
    }

    /// Tokenizes two texts together. Only the second one is truncated.
    fn pair(&mut self, first: &Arc<str>, second: &Arc<str>, index: usize) -> Result<(TokenizedInput, bool)> {
        let room = self.room(true);
        self.encode_of_pair(0, first, room)?;
        self.encode_of_pair(1, second, room)?;
        let [Some((_, first)), Some((_, second))] = &self.pair_texts else {
            return Err(Error::internal("the texts of a pair were not encoded"));
        };
        let max_tokens = self.model.max_tokens;
        if first.len() > room {
            return Err(Error::invalid(
                "input",
                format!(
                    "the first text of pair {index} alone is too long: this model takes at most {max_tokens} tokens \
                     for both texts; shorten it"
                ),
            ));
        }
        let room = self.text_room(room - first.len());
        let is_truncated = second.len() > room.n_tokens;
        if is_truncated && !room.truncate {
            return Err(Error::invalid(
                "input",
                format!(
                    "pair {index} is too long: this model takes at most {max_tokens} tokens for both texts; split the \
                     second one, or send `truncate: true` to score only its beginning, which is the default of a \
                     server started with --embedding-overflow truncate"
                ),
            ));
        }
        let second = &second[..second.len().min(room.n_tokens)];
        let (ids, n_first) = self.model.tokenizer.add_pair_template(first, second)?;
        Ok((TokenizedInput { ids, text: None, n_first: Some(n_first) }, is_truncated))
    }

    /// Encodes the first (0) or the second text (1) of a pair, unless it is that of the pair before.
    fn encode_of_pair(&mut self, position: usize, text: &Arc<str>, room: usize) -> Result<()> {
        let latest = &mut self.pair_texts[position];
        if latest.as_ref().is_some_and(|(other, _)| Arc::ptr_eq(other, text)) {
            return Ok(());
        }
        let InputRules { tokenizer, lowercase, .. } = self.model;
        let encoding = if *lowercase {
            tokenizer.encode_up_to(&text.to_lowercase(), room)?
        } else {
            tokenizer.encode_up_to(text, room)?
        };
        *latest = Some((text.clone(), encoding.ids));
        Ok(())
    }

    /// The room for a text where the model has room for `room` tokens.
    fn text_room(&self, room: usize) -> TextRoom {
        let RequestRules { truncate, max_text_tokens, .. } = self.request;
        match max_text_tokens.filter(|&max| max <= room) {
            Some(max) => TextRoom { n_tokens: max, truncate: true },
            None => TextRoom { n_tokens: room, truncate },
        }
    }

    /// Tokens that the model takes beside the special tokens of the template.
    fn room(&self, is_pair: bool) -> usize {
        self.model.max_tokens.saturating_sub(self.model.tokenizer.n_template_tokens(is_pair))
    }

    /// The error of an input of `n_tokens` tokens without the template's; `None` where they were not all counted.
    fn too_long(&self, index: usize, n_tokens: Option<usize>) -> Error {
        let max_tokens = self.model.max_tokens;
        let has = match n_tokens {
            Some(n) => format!("{} tokens", n + self.model.tokenizer.n_template_tokens(false)),
            None => format!("more than {max_tokens} tokens"),
        };
        Error::invalid(
            "input",
            format!(
                "input {index} has {has}, but this model takes at most {max_tokens}; split the text, or send \
                 `truncate: true` to embed only its beginning, which is the default of a server started with \
                 --embedding-overflow truncate"
            ),
        )
    }
}
