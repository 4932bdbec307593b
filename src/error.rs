//! The crate's error type: what went wrong, who can fix it, and how.
//!
//! Errors know nothing of HTTP: `http::error` alone maps each [`Kind`] to a status code. Messages are lower
//! case without a full stop, and name the thing and the remedy.

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
    /// A bounded queue is full; the same request may succeed later.
    Overloaded {
        /// Estimated time until a retry succeeds.
        retry_after: Duration,
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

/// A failure: its kind, a message for the user, and the request parameter at fault.
#[derive(Debug, Clone)]
pub struct Error {
    kind: Kind,
    message: String,
    param: Option<String>,
}

impl Error {
    /// Creates an error of a kind with a message.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), param: None }
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

    /// Prefixes the message with the operation that failed.
    pub fn context(mut self, operation: impl fmt::Display) -> Self {
        self.message = format!("{operation}: {}", self.message);
        self
    }

    /// The kind of the failure.
    pub fn kind(&self) -> Kind {
        self.kind
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
}
