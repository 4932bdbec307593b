//! The open connections of a server: each has a place in the table, and tells it what happens.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Context;
use std::time::Duration;

use metrics::Counter;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::connection_table::{
    CloseReason, ConnectionBounds, ConnectionPhase, ConnectionTable, LimitWarning,
};
use crate::config::Limits;
use crate::error::{Error, Kind, Result};
use crate::telemetry;

/// `retry-after` of what is refused for lack of room.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The open connections of a server.
#[derive(Clone)]
pub struct Connections(Arc<SharedTable>);

struct SharedTable {
    bounds: ConnectionBounds,
    refused: Counter,
    table: Mutex<ConnectionTable>,
}

impl Connections {
    /// A table with the bounds of `limits`.
    pub fn new(limits: &Limits) -> Self {
        let bounds = ConnectionBounds {
            connections: limits.connections,
            per_peer: limits.connections_per_peer,
            for_probes: limits.probe_connections,
            response_bytes: limits.untaken_response_bytes,
            head_timeout: limits.head_timeout,
            keep_alive_idle: limits.keep_alive_idle,
        };
        let phases =
            ConnectionPhase::LABELS.map(|label| metrics::gauge!(telemetry::CONNECTIONS, "phase" => label));
        let refused = metrics::counter!(telemetry::CONNECTIONS_REFUSED);
        Self(Arc::new(SharedTable { bounds, refused, table: Mutex::new(ConnectionTable::new(phases)) }))
    }

    /// Gives a new connection of `peer` a place, if there is one even for a probe. May end another connection.
    pub fn admit(&self, peer: IpAddr) -> Option<Place> {
        let now = Instant::now();
        let mut table = self.0.lock();
        let admitted = table.admit(peer, &self.0.bounds, now);
        let warning = table.warning(now);
        drop(table);
        if !matches!(admitted, Some((_, _, false))) {
            self.0.refused.increment(1);
        }
        if let Some(LimitWarning { n_made_room, n_refused }) = warning {
            let ConnectionBounds { connections, per_peer, .. } = self.0.bounds;
            tracing::warn!(
                n_made_room,
                n_refused,
                "the limit of {connections} connections, or of {per_peer} from one address, is reached: idle ones \
                 are closed for new ones, and where none is idle, new ones are refused; raise --max-connections or \
                 --max-connections-per-peer if these are your clients",
            );
        }
        let (id, ended, is_for_probes) = admitted?;
        Some(Place { activity: Activity { id, shared: self.0.clone() }, ended, is_for_probes })
    }

    /// Ends the connection that has been idle for longest, because the system has no file descriptors left.
    pub fn end_longest_idle(&self) {
        let mut table = self.0.lock();
        if let Some(id) = table.longest_idle(false) {
            table.end(id, CloseReason::MadeRoom);
        }
    }
}

impl SharedTable {
    fn lock(&self) -> MutexGuard<'_, ConnectionTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place in the table, given up on drop.
pub struct Place {
    activity: Activity,
    ended: Arc<Notify>,
    is_for_probes: bool,
}

impl Place {
    /// The connection's activity.
    pub fn activity(&self) -> &Activity {
        &self.activity
    }

    /// Whether only probes are served, since there was no other place.
    pub fn is_for_probes(&self) -> bool {
        self.is_for_probes
    }

    /// Completes when the table ends the connection.
    pub async fn ended(&self) {
        self.ended.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.activity.shared.lock().remove(self.activity.id);
    }
}

/// The reports of a connection's socket and requests to the table. Without effect once the connection
/// has lost its place.
#[derive(Clone)]
pub struct Activity {
    id: u64,
    shared: Arc<SharedTable>,
}

/// A guard that keeps its connection serving until it is dropped.
pub struct BusyGuard(Activity);

impl Activity {
    /// Begins to serve a request, until the guard is dropped.
    pub fn start_request(&self) -> BusyGuard {
        self.enter(ConnectionPhase::Serving);
        BusyGuard(self.clone())
    }

    /// Begins to wait for the first request, now that the TLS handshake is over.
    pub fn handshake_done(&self) {
        self.enter(ConnectionPhase::New);
    }

    /// Notes that bytes have arrived, which begin a head unless a request is being served.
    pub fn received(&self) {
        let mut table = self.shared.lock();
        if matches!(table.phase_since(self.id), Some((ConnectionPhase::New | ConnectionPhase::Idle, _))) {
            table.enter(self.id, ConnectionPhase::Head, Instant::now());
        }
    }

    /// Notes that all bytes so far are sent.
    pub fn sent(&self) {
        let mut table = self.shared.lock();
        if matches!(table.phase_since(self.id), Some((ConnectionPhase::Sending, _))) {
            let waker = table.enter(self.id, ConnectionPhase::Idle, Instant::now());
            drop(table);
            // An idle connection has a deadline, which its task must learn of.
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// Notes that the server only waits for the client's end of the connection.
    pub fn closing(&self) {
        self.enter(ConnectionPhase::Idle);
    }

    /// Notes that the server waits for the client to send or to take bytes, until `deadline` at most.
    pub fn wait_for_client(&self, deadline: Instant) {
        self.shared.lock().stall(self.id, deadline, Instant::now());
    }

    /// Notes that the client has sent or taken bytes.
    pub fn resume(&self) {
        self.shared.lock().resume(self.id);
    }

    /// Whether no request has been read since the last response.
    pub fn is_before_request(&self) -> bool {
        self.shared.lock().phase_since(self.id).is_some_and(|(phase, _)| phase.is_idle())
    }

    /// The end of the time in which bytes must arrive, and the reason for closing the connection then. While a
    /// request is served there is none; the task of `cx` is woken when there is one.
    pub fn read_deadline(&self, cx: &Context<'_>) -> Option<(Instant, CloseReason)> {
        let ConnectionBounds { head_timeout, keep_alive_idle, .. } = self.shared.bounds;
        let mut table = self.shared.lock();
        let (phase, since) = table.phase_since(self.id)?;
        let (limit, reason) = match phase {
            ConnectionPhase::New => (head_timeout, CloseReason::NoRequest),
            ConnectionPhase::Head => (head_timeout, CloseReason::SlowHead),
            ConnectionPhase::Idle => (keep_alive_idle, CloseReason::KeepAliveTimeout),
            ConnectionPhase::Serving | ConnectionPhase::Sending => {
                table.set_waker(self.id, cx.waker());
                return None;
            }
        };
        Some((since + limit, reason))
    }

    /// Counts the `n_bytes` of a response until they are sent. Where that exceeds the limit on bytes of responses
    /// that wait for their clients, ends the connections whose clients have kept theirs waiting for longest.
    ///
    /// # Errors
    /// When the other responses are too recent to be ended.
    pub fn hold_response(&self, n_bytes: usize) -> Result<()> {
        let max_bytes = self.shared.bounds.response_bytes;
        if self.shared.lock().hold_response(self.id, n_bytes, max_bytes, Instant::now()) {
            return Ok(());
        }
        let message = format!(
            "the clients of other requests have yet to take {max_bytes} bytes of responses, which is the limit; \
             retry later"
        );
        Err(Error::new(Kind::Overloaded { retry_after: RETRY_AFTER }, message))
    }

    /// The error for a request other than a probe on a connection that is only for probes.
    pub fn no_place(&self) -> Error {
        let max = self.shared.bounds.connections;
        let message = format!(
            "all {max} connections of this server, or all that one address may have, are in use; retry later"
        );
        Error::new(Kind::Overloaded { retry_after: RETRY_AFTER }, message)
    }

    fn enter(&self, phase: ConnectionPhase) {
        self.shared.lock().enter(self.id, phase, Instant::now());
    }
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        self.0.enter(ConnectionPhase::Sending);
    }
}
