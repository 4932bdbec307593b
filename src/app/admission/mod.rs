//! Admission control by the head of a request, before its body is read.
//!
//! Each class of requests has a number of places, and a budget of bytes for the bodies of the requests that hold them.
//! What waits inside the server, for the engine or for a thread that tokenizes, is bounded by them. A refusal costs
//! no more than a look at the `ledger`.

mod ledger;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use self::ledger::{AdmissionLedger, ClassFull, Shortage};
use crate::config::Limits;
use crate::error::{Error, Kind, Result};
use crate::telemetry;

/// The class of a route's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestClass {
    /// Chat and text completions.
    Generation,
    /// Embeddings, reranking and scoring.
    Embedding,
    /// Tokenizing and detokenizing.
    Tokens,
}

/// All classes, in the order of their accounts.
const CLASSES: [RequestClass; N_CLASSES] =
    [RequestClass::Generation, RequestClass::Embedding, RequestClass::Tokens];

/// Number of classes.
pub const N_CLASSES: usize = 3;

/// Bounds of one class.
#[derive(Debug, Clone, Copy)]
pub struct ClassLimits {
    /// Requests in progress.
    pub max_requests: usize,
    /// Bytes of their bodies.
    pub max_body_bytes: usize,
}

/// Admission control. Cheap to clone.
#[derive(Clone)]
pub struct AdmissionControl {
    ledger: Arc<Mutex<AdmissionLedger<Arc<Notify>>>>,
    body_grace: Duration,
}

/// A place in a class, given back when dropped.
pub struct AdmissionGuard {
    control: AdmissionControl,
    id: u64,
    class: RequestClass,
    evicted: Arc<Notify>,
    is_body_complete: AtomicBool,
}

impl RequestClass {
    /// The name of the class in messages and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Generation => "generation",
            Self::Embedding => "embedding",
            Self::Tokens => "tokenization",
        }
    }

    fn limits(self, limits: &Limits, n_chat_models: usize, n_text_models: usize) -> ClassLimits {
        let places = |each: usize, n_models: usize| each.saturating_mul(n_models.max(1)).max(1);
        let max_requests = match self {
            Self::Generation => places(limits.queued_requests + limits.running_requests, n_chat_models),
            Self::Embedding => places(limits.embedding_requests, n_text_models),
            Self::Tokens => limits.token_requests.max(1),
        };
        let max_body_bytes = match self {
            Self::Generation | Self::Embedding => limits.bodies_bytes,
            Self::Tokens => limits.token_bodies_bytes,
        };
        // One request of the largest size always fits.
        ClassLimits { max_requests, max_body_bytes: max_body_bytes.max(limits.body_bytes) }
    }
}

impl AdmissionControl {
    /// Admission control for a server with this many models.
    pub fn new(limits: &Limits, n_chat_models: usize, n_text_models: usize) -> Self {
        let classes = CLASSES.map(|class| class.limits(limits, n_chat_models, n_text_models));
        let ledger = AdmissionLedger::new(classes, limits.place_grace);
        Self { ledger: Arc::new(Mutex::new(ledger)), body_grace: limits.place_grace }
    }

    /// Admits a request of a tenant whose head announces a body of `n_bytes`; 0 if it does not say.
    ///
    /// # Errors
    /// When its class is full; the error says when to retry.
    pub fn admit(&self, class: RequestClass, tenant: &Arc<str>, n_bytes: usize) -> Result<AdmissionGuard> {
        let signal = Arc::new(Notify::new());
        let admitted = self.ledger().admit(class, tenant, n_bytes, signal.clone(), Instant::now());
        let (id, evicted) = admitted.map_err(|full| refusal(class, n_bytes, full))?;
        notify(&evicted);
        Ok(AdmissionGuard {
            control: self.clone(),
            id,
            class,
            evicted: signal,
            is_body_complete: AtomicBool::new(false),
        })
    }

    /// Requests of each class, and bytes of their bodies.
    pub fn load(&self) -> [(RequestClass, usize, usize); N_CLASSES] {
        let ledger = self.ledger();
        CLASSES.map(|class| {
            let (n_requests, n_bytes) = ledger.load(class);
            (class, n_requests, n_bytes)
        })
    }

    fn ledger(&self) -> MutexGuard<'_, AdmissionLedger<Arc<Notify>>> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AdmissionGuard {
    /// Takes room for a body of which `n_bytes` have arrived, as far as its head has not announced them.
    ///
    /// # Errors
    /// When there is none.
    pub fn grow(&self, n_bytes: usize) -> Result<()> {
        let grown = self.control.ledger().grow(self.id, n_bytes, Instant::now());
        notify(&grown.map_err(|full| refusal(self.class, n_bytes, full))?);
        Ok(())
    }

    /// Records that the body has arrived.
    ///
    /// # Errors
    /// When the request has been evicted.
    pub fn complete_body(&self) -> Result<()> {
        if !self.control.ledger().complete_body(self.id) {
            return Err(self.eviction());
        }
        self.is_body_complete.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the body has arrived.
    pub fn is_body_complete(&self) -> bool {
        self.is_body_complete.load(Ordering::Relaxed)
    }

    /// Resolves if the request has to end for another, because its body arrives too slowly; to its error.
    pub async fn evicted(&self) -> Error {
        self.evicted.notified().await;
        self.eviction()
    }

    fn eviction(&self) -> Error {
        let message = format!(
            "the server is full, and the body of this request took longer than {} s to arrive; try again later",
            self.control.body_grace.as_secs_f64()
        );
        overloaded(Duration::from_secs(1), message)
    }
}

impl Drop for AdmissionGuard {
    fn drop(&mut self) {
        self.control.ledger().release(self.id, Instant::now());
    }
}

fn notify(evicted: &[Arc<Notify>]) {
    // Each is waited for once; a notification before that is kept.
    evicted.iter().for_each(|signal| signal.notify_one());
}

fn refusal(class: RequestClass, n_bytes: usize, full: ClassFull) -> Error {
    let name = class.name();
    let message = match full.shortage {
        Shortage::Requests(n) => {
            format!("the server is full: {n} {name} requests are in progress; try again later")
        }
        Shortage::BodyBytes(n) => format!(
            "the server is full: the bodies of {name} requests in progress may have {n} bytes, and {n_bytes} do not \
             fit; try again later"
        ),
    };
    overloaded(full.retry_after, message)
}

fn overloaded(retry_after: Duration, message: String) -> Error {
    metrics::counter!(telemetry::REQUESTS_SHED).increment(1);
    Error::new(Kind::Overloaded { retry_after }, message)
}
