//! The one error type: what went wrong, whose fault it is, and what the user can do.
//!
//! There is no HTTP in here; `http::error` turns a [`Kind`] into a status code, and is the only
//! place that does. Messages are lower case, carry no full stop, name the thing and the remedy.

use std::fmt;
use std::time::Duration;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure an [`Error`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request is malformed or asks for something that is not supported.
    InvalidRequest,
    /// Prompt and requested tokens do not fit the model's context.
    ContextLengthExceeded,
    /// The request names a model that is not served here.
    ModelNotFound,
    /// A bounded queue is full; the same request may succeed after the given time.
    Overloaded { retry_after: Duration },
    /// The server is loading, draining, or a part of it is not running.
    Unavailable,
    /// A model file is missing, malformed or of an unsupported form.
    Model,
    /// A model's files could not be found or fetched.
    Registry,
    /// The command line or environment asks for something impossible.
    Config,
    /// Our own mistake.
    Internal,
}

/// A failure with its kind, a message for the user, and the request parameter it is about.
#[derive(Debug, Clone)]
pub struct Error {
    kind: Kind,
    message: String,
    param: Option<String>,
}

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), param: None }
    }

    /// A request that cannot be honoured; `param` names the field at fault.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(Kind::InvalidRequest, message) }
    }

    /// A model file that cannot be used.
    pub fn model(message: impl Into<String>) -> Self {
        Self::new(Kind::Model, message)
    }

    /// A model that cannot be found or fetched.
    pub fn registry(message: impl Into<String>) -> Self {
        Self::new(Kind::Registry, message)
    }

    /// A mistake of our own.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// Names the request parameter this error is about.
    pub fn with_param(self, param: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..self }
    }

    /// Puts what was being done in front of the message.
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The request parameter at fault, if it is one.
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
