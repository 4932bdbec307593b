//! The table of open connections: their phases, who gets a place, and which connection makes room for another.
//!
//! At the limit, the connection that has been idle for longest is closed for a new one; a connection on which
//! nothing or only a part of a head has arrived counts as idle since then. Next are connections that wait for a slow
//! client, the one that is nearest to its time limit first. A connection whose request is being served is never
//! closed. If all are being served, a few places remain for probes.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use metrics::Gauge;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::telemetry;

/// The least time that a client is waited for before its connection can make room for another.
const MIN_STALL: Duration = Duration::from_secs(1);

/// Pause between two warnings that the limit is reached.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

/// The phase of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionPhase {
    /// Nothing has arrived yet.
    New,
    /// The head of a request is arriving.
    Head,
    /// A request is being served; its body may still be arriving.
    Serving,
    /// A response is complete but not sent.
    Sending,
    /// Keep-alive: waiting for the next request.
    Idle,
}

impl ConnectionPhase {
    /// The phases as the label of a metric, in the order of the variants.
    pub const LABELS: [&str; 5] = ["new", "head", "serving", "sending", "idle"];

    /// Whether the connection serves no request.
    pub fn is_idle(self) -> bool {
        matches!(self, Self::New | Self::Head | Self::Idle)
    }
}

/// The reason for which the server closes a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// No request arrived.
    NoRequest,
    /// The head of a request took too long.
    SlowHead,
    /// No further request arrived.
    KeepAliveTimeout,
    /// The body of a request arrived too slowly.
    SlowBody,
    /// The client took its response too slowly.
    SlowReader,
    /// It was idle, or waited for its client, at the limit of connections.
    MadeRoom,
    /// Too many bytes of responses were waiting for their clients.
    ResponseBytes,
}

impl CloseReason {
    fn label(self) -> &'static str {
        match self {
            Self::NoRequest => "no_request",
            Self::SlowHead => "slow_head",
            Self::KeepAliveTimeout => "keep_alive_timeout",
            Self::SlowBody => "slow_body",
            Self::SlowReader => "slow_reader",
            Self::MadeRoom => "made_room",
            Self::ResponseBytes => "response_bytes",
        }
    }

    /// Counts a connection that is closed for this reason.
    pub fn count(self) {
        metrics::counter!(telemetry::CONNECTIONS_CLOSED, "reason" => self.label()).increment(1);
    }
}

/// The limits that concern connections.
pub struct ConnectionBounds {
    /// Connections open at once.
    pub connections: usize,
    /// Connections open at once from one peer; 0 is unlimited.
    pub per_peer: usize,
    /// Connections beyond the others that are only for probes.
    pub for_probes: usize,
    /// Bytes of responses that wait for their clients.
    pub response_bytes: usize,
    /// Time for the head of a request, and for the first byte of a connection.
    pub head_timeout: Duration,
    /// Time between two requests.
    pub keep_alive_idle: Duration,
}

/// The open connections. Every method that needs the time gets it.
pub struct ConnectionTable {
    next_id: u64,
    connections: HashMap<u64, OpenConnection>,
    /// Connections of each peer, without those for probes.
    n_of_peer: HashMap<IpAddr, usize>,
    n_for_probes: usize,
    /// Idle connections, those of longest standing first: ordinary ones, and those for probes.
    idle: [BTreeSet<(Instant, u64)>; 2],
    /// Ordinary connections that wait for a slow client, by the end of its time.
    stalled: BTreeSet<(Instant, u64)>,
    /// Bytes of responses that are not sent.
    response_bytes: usize,
    /// Open connections by phase.
    phases: [Gauge; 5],
    warning: LimitWarning,
    warned_at: Option<Instant>,
}

/// Events at the limit since the last warning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LimitWarning {
    /// Connections closed for new ones.
    pub n_made_room: usize,
    /// Connections for which there was no room, except for a probe.
    pub n_refused: usize,
}

struct OpenConnection {
    peer: IpAddr,
    is_for_probes: bool,
    phase: ConnectionPhase,
    since: Instant,
    stall: Option<Stall>,
    /// When the response that is being sent was complete, and its bytes.
    response: Option<(Instant, usize)>,
    /// The connection's task, if it waits without a deadline.
    waker: Option<Waker>,
    /// Tells the connection's task to end.
    ended: Arc<Notify>,
}

/// The wait for a client in the middle of a request or response.
#[derive(Clone, Copy)]
struct Stall {
    since: Instant,
    deadline: Instant,
}

impl ConnectionTable {
    /// An empty table that reports its connections to the gauges of the phases.
    pub fn new(phases: [Gauge; 5]) -> Self {
        Self {
            next_id: 0,
            connections: HashMap::new(),
            n_of_peer: HashMap::new(),
            n_for_probes: 0,
            idle: Default::default(),
            stalled: BTreeSet::new(),
            response_bytes: 0,
            phases,
            warning: LimitWarning::default(),
            warned_at: None,
        }
    }

    /// Adds a connection. Returns its id, its signal to end, and whether it is only for probes.
    pub fn admit(
        &mut self,
        peer: IpAddr,
        bounds: &ConnectionBounds,
        now: Instant,
    ) -> Option<(u64, Arc<Notify>, bool)> {
        let peer = peer.to_canonical();
        let bound = if peer.is_loopback() || bounds.per_peer == 0 { usize::MAX } else { bounds.per_peer };
        let peer = peer_network(peer);
        let is_ordinary = self.make_room(peer, bound, bounds.connections, now);
        if !is_ordinary {
            self.warning.n_refused += 1;
            if !self.make_room_for_probe(peer, bounds.for_probes) {
                return None;
            }
        }
        let id = self.next_id;
        self.next_id += 1;
        let ended = Arc::new(Notify::new());
        let connection = OpenConnection {
            peer,
            is_for_probes: !is_ordinary,
            phase: ConnectionPhase::New,
            since: now,
            stall: None,
            response: None,
            waker: None,
            ended: ended.clone(),
        };
        match is_ordinary {
            true => *self.n_of_peer.entry(peer).or_default() += 1,
            false => self.n_for_probes += 1,
        }
        self.phases[ConnectionPhase::New as usize].increment(1.0);
        self.idle[usize::from(!is_ordinary)].insert((now, id));
        self.connections.insert(id, connection);
        Some((id, ended, !is_ordinary))
    }

    /// Whether there is room for an ordinary connection of `peer`, perhaps in place of another one.
    fn make_room(&mut self, peer: IpAddr, max_of_peer: usize, max: usize, now: Instant) -> bool {
        let victim = if self.n_of_peer.get(&peer).is_some_and(|&n| n >= max_of_peer) {
            self.longest_idle_of(peer, false)
        } else if self.connections.len() - self.n_for_probes >= max {
            self.longest_idle(false).or_else(|| self.nearest_to_timeout(now))
        } else {
            return true;
        };
        self.warning.n_made_room += usize::from(victim.is_some());
        victim.map(|id| self.end(id, CloseReason::MadeRoom)).is_some()
    }

    /// Whether there is room for a connection that is only for probes. A peer that has such connections gives up one
    /// of its own first.
    fn make_room_for_probe(&mut self, peer: IpAddr, max: usize) -> bool {
        if self.n_for_probes < max {
            return true;
        }
        let victim = self.longest_idle_of(peer, true).or_else(|| self.longest_idle(true));
        victim.map(|id| self.end(id, CloseReason::MadeRoom)).is_some()
    }

    /// The connection that has been idle for longest.
    pub fn longest_idle(&self, for_probes: bool) -> Option<u64> {
        self.idle[usize::from(for_probes)].first().map(|&(_, id)| id)
    }

    fn longest_idle_of(&self, peer: IpAddr, for_probes: bool) -> Option<u64> {
        let mut idle = self.idle[usize::from(for_probes)].iter().map(|&(_, id)| id);
        idle.find(|id| self.connections.get(id).is_some_and(|connection| connection.peer == peer))
    }

    /// The connection whose client has the least time left, among those that have been waited for at all.
    fn nearest_to_timeout(&self, now: Instant) -> Option<u64> {
        let is_old = |id: &u64| {
            let stall = self.connections.get(id).and_then(|connection| connection.stall);
            stall.is_some_and(|stall| stall.since + MIN_STALL <= now)
        };
        self.stalled.iter().map(|&(_, id)| id).find(is_old)
    }

    /// The phase of a connection, and when it began.
    pub fn phase_since(&self, id: u64) -> Option<(ConnectionPhase, Instant)> {
        self.connections.get(&id).map(|connection| (connection.phase, connection.since))
    }

    /// Sets the task to wake when the connection is idle again.
    pub fn set_waker(&mut self, id: u64, waker: &Waker) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.waker = Some(waker.clone());
        }
    }

    /// Changes the phase. Returns the task that waits without a deadline, if there is one now.
    pub fn enter(&mut self, id: u64, phase: ConnectionPhase, now: Instant) -> Option<Waker> {
        self.resume(id);
        let connection = self.connections.get_mut(&id)?;
        let idle = &mut self.idle[usize::from(connection.is_for_probes)];
        idle.remove(&(connection.since, id));
        if phase.is_idle() {
            idle.insert((now, id));
            self.response_bytes -= connection.response.take().map_or(0, |(_, n_bytes)| n_bytes);
        }
        self.phases[connection.phase as usize].decrement(1.0);
        self.phases[phase as usize].increment(1.0);
        (connection.phase, connection.since) = (phase, now);
        // Only an idle connection has a deadline to learn of.
        if phase.is_idle() { connection.waker.take() } else { None }
    }

    /// Notes that the server waits for the client to send or to take bytes.
    pub fn stall(&mut self, id: u64, deadline: Instant, now: Instant) {
        self.resume(id);
        if let Some(connection) = self.connections.get_mut(&id).filter(|c| !c.is_for_probes) {
            connection.stall = Some(Stall { since: now, deadline });
            self.stalled.insert((deadline, id));
        }
    }

    /// Notes that the server waits no longer.
    pub fn resume(&mut self, id: u64) {
        let stall = self.connections.get_mut(&id).and_then(|connection| connection.stall.take());
        if let Some(Stall { deadline, .. }) = stall {
            self.stalled.remove(&(deadline, id));
        }
    }

    /// Counts the bytes of a response, or returns `false` if there is no room for them.
    pub fn hold_response(&mut self, id: u64, n_bytes: usize, max_bytes: usize, now: Instant) -> bool {
        // One response alone may be larger.
        while self.response_bytes > 0 && self.response_bytes.saturating_add(n_bytes) > max_bytes {
            let waiting = self.connections.iter().filter_map(|(&other, connection)| {
                let (since, _) = connection.response?;
                (other != id && since + MIN_STALL <= now).then_some((since, other))
            });
            let Some((_, slowest)) = waiting.min() else { return false };
            self.end(slowest, CloseReason::ResponseBytes);
        }
        if let Some(connection) = self.connections.get_mut(&id) {
            let (_, held) = connection.response.get_or_insert((now, 0));
            *held += n_bytes;
            self.response_bytes += n_bytes;
        }
        true
    }

    /// Takes the connection's place and tells its task to end.
    pub fn end(&mut self, id: u64, reason: CloseReason) {
        if let Some(connection) = self.take(id) {
            reason.count();
            connection.ended.notify_one();
        }
    }

    /// Takes the connection's place.
    pub fn remove(&mut self, id: u64) {
        self.take(id);
    }

    fn take(&mut self, id: u64) -> Option<OpenConnection> {
        self.resume(id);
        let connection = self.connections.remove(&id)?;
        self.idle[usize::from(connection.is_for_probes)].remove(&(connection.since, id));
        self.response_bytes -= connection.response.map_or(0, |(_, n_bytes)| n_bytes);
        self.phases[connection.phase as usize].decrement(1.0);
        if connection.is_for_probes {
            self.n_for_probes -= 1;
        } else if let Some(n) = self.n_of_peer.get_mut(&connection.peer) {
            *n -= 1;
            if *n == 0 {
                self.n_of_peer.remove(&connection.peer);
            }
        }
        Some(connection)
    }

    /// The events to warn of, at most once in [`WARNING_INTERVAL`].
    pub fn warning(&mut self, now: Instant) -> Option<LimitWarning> {
        let is_due = self.warned_at.is_none_or(|at| at + WARNING_INTERVAL <= now);
        if !is_due || self.warning == LimitWarning::default() {
            return None;
        }
        self.warned_at = Some(now);
        Some(std::mem::take(&mut self.warning))
    }
}

/// The network that counts as one peer: an IPv4 address, or a /64 of IPv6, which one subscriber has for himself.
fn peer_network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: ConnectionBounds = ConnectionBounds {
        connections: 4,
        per_peer: 2,
        for_probes: 2,
        response_bytes: 1000,
        head_timeout: Duration::from_secs(10),
        keep_alive_idle: Duration::from_secs(90),
    };
    const SECOND: Duration = Duration::from_secs(1);

    /// A table, the time, and the signals of its connections.
    struct Scene {
        table: ConnectionTable,
        now: Instant,
        ended: HashMap<u64, Arc<Notify>>,
    }

    impl Scene {
        fn new() -> Self {
            let table = ConnectionTable::new(ConnectionPhase::LABELS.map(|_| Gauge::noop()));
            Self { table, now: Instant::now(), ended: HashMap::new() }
        }

        /// Opens a connection a second later. Returns its id and whether it is only for probes.
        fn open(&mut self, peer: &str) -> Option<(u64, bool)> {
            self.now += SECOND;
            let (id, ended, is_for_probes) = self.table.admit(peer.parse().unwrap(), &BOUNDS, self.now)?;
            self.ended.insert(id, ended);
            Some((id, is_for_probes))
        }

        pub fn enter(&mut self, id: u64, phase: ConnectionPhase) {
            self.now += SECOND;
            self.table.enter(id, phase, self.now);
        }

        /// The connections that have been told to end since the last call.
        fn ended(&mut self) -> Vec<u64> {
            let mut ended: Vec<u64> =
                self.ended.keys().copied().filter(|id| !self.table.connections.contains_key(id)).collect();
            ended.sort_unstable();
            ended.iter().for_each(|id| drop(self.ended.remove(id)));
            ended
        }
    }

    #[test]
    fn the_longest_idle_connection_makes_room_and_a_serving_one_never() {
        let mut scene = Scene::new();
        for _ in 0..4 {
            scene.open("127.0.0.1").unwrap();
        }
        scene.enter(0, ConnectionPhase::Serving);
        scene.enter(1, ConnectionPhase::Head);
        assert!(scene.ended().is_empty());
        assert_eq!(scene.open("127.0.0.1"), Some((4, false)));
        assert_eq!(scene.ended(), [2], "silent since its start");
        // 0 has just become idle.
        scene.enter(0, ConnectionPhase::Sending);
        scene.enter(0, ConnectionPhase::Idle);
        for (new, oldest) in [(5, 3), (6, 1), (7, 4), (8, 0)] {
            assert_eq!(scene.open("127.0.0.1"), Some((new, false)));
            assert_eq!(scene.ended(), [oldest]);
        }
    }

    #[test]
    fn probes_have_places_where_all_others_are_serving() {
        let mut scene = Scene::new();
        for id in 0..4 {
            scene.open("127.0.0.1").unwrap();
            scene.enter(id, ConnectionPhase::Serving);
        }
        assert_eq!(scene.open("127.0.0.1"), Some((4, true)));
        assert_eq!(scene.open("127.0.0.1"), Some((5, true)));
        assert_eq!(scene.open("127.0.0.1"), Some((6, true)));
        assert_eq!(scene.ended(), [4], "the places for probes are few");
        scene.enter(5, ConnectionPhase::Serving);
        scene.enter(6, ConnectionPhase::Serving);
        assert_eq!(scene.open("127.0.0.1"), None);
        scene.enter(2, ConnectionPhase::Idle);
        assert_eq!(scene.open("127.0.0.1"), Some((7, false)));
        assert_eq!(scene.ended(), [2]);
        scene.table.remove(5);
        scene.table.remove(6);
        assert_eq!(scene.table.n_for_probes, 0);
    }

    #[test]
    fn a_slow_client_makes_room_where_none_is_idle() {
        let mut scene = Scene::new();
        for id in 0..4 {
            scene.open("127.0.0.1").unwrap();
            scene.enter(id, ConnectionPhase::Serving);
        }
        let deadline = |scene: &Scene, seconds: u32| scene.now + seconds * SECOND;
        scene.table.stall(0, deadline(&scene, 30), scene.now);
        scene.table.stall(1, deadline(&scene, 9), scene.now);
        scene.table.stall(2, deadline(&scene, 5), scene.now);
        scene.table.resume(2);
        assert_eq!(scene.open("127.0.0.1"), Some((4, false)));
        assert_eq!(scene.ended(), [1], "it had the least time left");
        scene.enter(4, ConnectionPhase::Serving);
        assert_eq!(scene.open("127.0.0.1"), Some((5, false)));
        assert_eq!(scene.ended(), [0]);
        scene.enter(5, ConnectionPhase::Serving);
        // A second must pass first.
        scene.table.stall(5, scene.now + SECOND / 2, scene.now + SECOND);
        assert_eq!(scene.open("127.0.0.1"), Some((6, true)));
    }

    #[test]
    fn the_task_is_woken_once_its_connection_is_idle() {
        let mut scene = Scene::new();
        scene.open("127.0.0.1").unwrap();
        scene.enter(0, ConnectionPhase::Serving);
        scene.table.set_waker(0, Waker::noop());
        assert!(scene.table.enter(0, ConnectionPhase::Sending, scene.now).is_none());
        assert!(scene.table.enter(0, ConnectionPhase::Idle, scene.now).is_some());
        assert!(scene.table.enter(0, ConnectionPhase::Head, scene.now).is_none());
    }

    #[test]
    fn a_peer_has_no_more_than_its_share() {
        let mut scene = Scene::new();
        for peer in ["10.0.0.1", "::ffff:10.0.0.1", "2001:db8::1", "2001:db8::2"] {
            scene.open(peer).unwrap();
        }
        // Another address in the same /64 replaces its own oldest.
        assert_eq!(scene.open("2001:db8:0:0:ffff::3"), Some((4, false)));
        assert_eq!(scene.ended(), [2]);
        assert_eq!(scene.open("10.0.0.1"), Some((5, false)));
        assert_eq!(scene.ended(), [0]);
        for id in [1, 5] {
            scene.enter(id, ConnectionPhase::Serving);
        }
        assert_eq!(scene.open("10.0.0.1"), Some((6, true)), "only for probes");
        assert_eq!(scene.open("2001:db8:0:1::1"), Some((7, false)), "another network");
        assert_eq!(scene.ended(), [3]);
        let mut scene = Scene::new();
        for peer in ["127.0.0.1", "127.0.0.1", "127.0.0.1", "::1"] {
            assert!(scene.open(peer).is_some_and(|(_, is_for_probes)| !is_for_probes), "loopback is exempt");
        }
        assert!(scene.ended().is_empty());
    }

    #[test]
    fn the_slowest_reader_is_ended_beyond_the_bytes_of_responses() {
        let mut scene = Scene::new();
        for id in 0..4 {
            scene.open("127.0.0.1").unwrap();
            scene.enter(id, ConnectionPhase::Serving);
        }
        let max = BOUNDS.response_bytes;
        assert!(scene.table.hold_response(0, 2 * max, max, scene.now), "one response alone may be larger");
        assert!(!scene.table.hold_response(1, 1, max, scene.now), "the other one is new");
        scene.now += 2 * SECOND;
        assert!(scene.table.hold_response(1, 600, max, scene.now));
        assert_eq!(scene.ended(), [0]);
        assert!(scene.table.hold_response(2, 400, max, scene.now));
        scene.enter(1, ConnectionPhase::Idle);
        assert_eq!(scene.table.response_bytes, 400, "sent");
        scene.table.remove(2);
        assert_eq!(scene.table.response_bytes, 0, "gone");
    }

    #[test]
    fn warnings_are_rare_and_tell_what_happened_between() {
        let mut scene = Scene::new();
        assert_eq!(scene.table.warning(scene.now), None);
        for _ in 0..6 {
            scene.open("127.0.0.1").unwrap();
        }
        let warning = |n_made_room, n_refused| Some(LimitWarning { n_made_room, n_refused });
        assert_eq!(scene.table.warning(scene.now), warning(2, 0));
        scene.open("127.0.0.1").unwrap();
        assert_eq!(scene.table.warning(scene.now), None);
        scene.now += WARNING_INTERVAL;
        assert_eq!(scene.table.warning(scene.now), warning(1, 0));
        assert_eq!(scene.table.warning(scene.now + WARNING_INTERVAL), None);
    }
}
