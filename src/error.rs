//! The crate's error type: what went wrong, who can fix it, and how.
//!
//! Errors know nothing of HTTP: `http::error` alone maps each [`Kind`] to a status code. Messages are lower
//! case without a full stop, and name the thing and the remedy. Request data in a message is cut and escaped by
//! [`quote`].

use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;
use std::time::Duration;

/// A result with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kind of a failure, which determines the HTTP status and whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request is malformed or needs something that is not supported.
    InvalidRequest,
    /// The prompt and the requested tokens exceed the model's context.
    ContextLengthExceeded,
    /// The request names a model that this server does not have.
    ModelNotFound,
    /// The request names something stored that this server does not have, or no longer.
    NotFound,
    /// The request continues a response that is not stored.
    PreviousResponseNotFound,
    /// The request continues a conversation that this server does not hold.
    ThreadNotFound,
    /// A bounded queue is full; the same request may succeed later.
    Overloaded {
        /// Estimated time until a retry succeeds.
        retry_after: Duration,
    },
    /// The client's key exceeds a limit that the operator has set for it.
    RateLimited {
        /// Time until a retry may succeed.
        retry_after: Duration,
        /// What is limited.
        unit: RateUnit,
    },
    /// The server is loading or draining, or a part of it has failed.
    Unavailable,
    /// A model file is missing, malformed or of an unsupported format.
    Model,
    /// A model's files could not be found or downloaded.
    Registry,
    /// An option or environment variable has a value that cannot work.
    Config,
    /// A bug in this server.
    Internal,
}

/// The unit of a rate limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateUnit {
    /// Requests.
    Requests,
    /// Tokens.
    Tokens,
}

/// A failure: its kind, a message for the user, and the request parameter at fault.
#[derive(Debug, Clone)]
pub struct Error {
    kind: Kind,
    message: String,
    param: Option<String>,
    /// The text that clients see in place of the message of a fault of the server.
    public: Option<String>,
}

/// The longest message. Our own texts stay below it.
const MAX_MESSAGE_BYTES: usize = 1800;

/// How much of the end of a longer message stays: it says what to do.
const MESSAGE_END_BYTES: usize = 400;

impl Error {
    /// Creates an error of a kind with a message. A message that is too long, because it quotes a file or another
    /// program, loses its middle.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > MAX_MESSAGE_BYTES {
            let start = &message[..message.floor_char_boundary(MAX_MESSAGE_BYTES - MESSAGE_END_BYTES)];
            let end = &message[message.ceil_char_boundary(message.len() - MESSAGE_END_BYTES)..];
            message = format!("{start} ... {end}");
        }
        Self { kind, message, param: None, public: None }
    }

    /// Creates an error for a request that cannot be honored because of the parameter `param`.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(Kind::InvalidRequest, message) }
    }

    /// Creates an error for a model file that cannot be used.
    pub fn model(message: impl Into<String>) -> Self {
        Self::new(Kind::Model, message)
    }

    /// Creates an error for a model that cannot be found or downloaded.
    pub fn registry(message: impl Into<String>) -> Self {
        Self::new(Kind::Registry, message)
    }

    /// Creates an error for a bug in this server.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// Sets the request parameter at fault.
    pub fn with_param(self, param: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..self }
    }

    /// Sets what clients see in place of the message of a fault of the server, which may name local files. The
    /// first text that is set stays.
    pub fn with_public(self, text: impl Into<String>) -> Self {
        Self { public: self.public.or_else(|| Some(text.into())), ..self }
    }

    /// Replaces the message.
    pub fn with_message(self, message: impl Into<String>) -> Self {
        Self { message: message.into(), ..self }
    }

    /// Prefixes the message with the operation that failed.
    pub fn context(mut self, operation: impl fmt::Display) -> Self {
        self.message = format!("{operation}: {}", self.message);
        self
    }

    /// The kind of the failure.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The text that clients see in place of the message of a fault of the server, if that is set.
    pub fn public(&self) -> Option<&str> {
        self.public.as_deref()
    }

    /// The request parameter at fault, if there is one.
    pub fn param(&self) -> Option<&str> {
        self.param.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

thread_local! {
    /// The place of the latest panic on this thread, while [`catch_panic`] runs.
    static CAUGHT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs code of a library that may panic over a damaged file, on this thread. Returns the place of a panic, which is
/// not reported otherwise: it is a fault of the file, and the caller says so.
///
/// # Errors
/// When `work` panics.
pub fn catch_panic<T>(work: impl FnOnce() -> T) -> std::result::Result<T, String> {
    static QUIET_HOOK: Once = Once::new();
    QUIET_HOOK.call_once(|| {
        let report = take_hook();
        set_hook(Box::new(move |info| {
            let is_caught = CAUGHT.with_borrow_mut(|caught| {
                let place = caught.as_mut()?;
                *place = info.location().map(ToString::to_string).unwrap_or_default();
                Some(())
            });
            if is_caught.is_none() {
                report(info);
            }
        }));
    });
    let outer = CAUGHT.replace(Some(String::new()));
    let result = catch_unwind(AssertUnwindSafe(work));
    let place = CAUGHT.replace(outer);
    result.map_err(|_| place.unwrap_or_default())
}

/// The most characters of request data that a message quotes.
const MAX_QUOTE_CHARS: usize = 200;

/// Request data as a message may quote it: cut to 200 characters, with control characters, line breaks and
/// characters that hide or reorder text escaped, so that a quote never passes for a log line of its own.
pub fn quote(text: &str) -> String {
    let (quoted, is_cut) = escape_chars(text, MAX_QUOTE_CHARS);
    if is_cut { quoted + "..." } else { quoted }
}

/// The first `max_chars` characters of `text`, escaped as by [`quote`], and whether there are more.
pub fn escape_chars(text: &str, max_chars: usize) -> (String, bool) {
    let mut escaped = String::new();
    let mut chars = text.chars();
    for c in chars.by_ref().take(max_chars) {
        let is_invisible = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        if c.is_control() || is_invisible { escaped.extend(c.escape_default()) } else { escaped.push(c) }
    }
    (escaped, chars.next().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_caught_with_its_place() {
        assert_eq!(catch_panic(|| 5), Ok(5));
        let place = catch_panic(|| panic!("on purpose")).unwrap_err();
        assert!(place.contains("error.rs"), "{place}");
        let inner = catch_panic(|| catch_panic(|| panic!("on purpose")).is_err());
        assert_eq!(inner, Ok(true));
    }

    #[test]
    fn quotes_are_short_and_on_one_line() {
        assert_eq!(quote("a \"b\" \\ é 字"), "a \"b\" \\ é 字");
        assert_eq!(
            quote("a\r\nb\t\u{1b}[31m\0\u{85}\u{202e}"),
            "a\\r\\nb\\t\\u{1b}[31m\\u{0}\\u{85}\\u{202e}"
        );
        let long = "é".repeat(1 << 20);
        assert_eq!(quote(&long), format!("{}...", "é".repeat(200)));
        assert_eq!(quote(&long[..400]), long[..400]);
    }

    #[test]
    fn the_first_public_text_stays() {
        let error = Error::model("cannot read `/home/me/x`").with_public("model `x` cannot be loaded");
        assert_eq!(error.public(), Some("model `x` cannot be loaded"));
        assert_eq!(error.clone().with_public("another").context("loading").public(), error.public());
        assert_eq!(Error::model("x").public(), None);
    }

    #[test]
    fn messages_are_bounded() {
        let long = Error::model("é".repeat(1 << 20)).to_string();
        assert!(long.len() <= MAX_MESSAGE_BYTES + 5 && long.contains("é ... é"), "{}", long.len());
        let remedy = Error::model(format!("`{}` is unknown; use another", "x".repeat(10_000))).to_string();
        assert!(remedy.starts_with("`xxx") && remedy.ends_with("xxx` is unknown; use another"), "{remedy}");
    }
}
