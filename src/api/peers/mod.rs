//! Keeps the list of connections, and ends those that hold something and get nowhere.
//!
//! Every connection of every door has a [`Peer`], which the socket, the requests on it and their bodies keep up to date
//! with plain counters. One task, [`Peers::watch`], looks at all of them once in a while and ends what has to end:
//!
//! | what | after | how it ends |
//! | --- | --- | --- |
//! | no whole head: silence, a part of a head, HTTP/2 without a stream | `limits.head-timeout` | cut |
//! | no request in progress | `limits.idle-timeout` | closed as HTTP wants |
//! | a body that comes in below `limits.rate-min` | `limits.rate-window`, sooner when memory is short | 408, then closed |
//! | an answer that goes out below it | the same | cut |
//!
//! The last two rows are not for another daemon of the cluster, whose connection carries the requests of many.
//!
//! - [`flow`]: what is moving, and whose turn it is.
//! - [`socket`]: counts what a socket moves.
//! - [`answer`]: the body of an answer.
//!
//! # Places
//! A connection has one of `limits.connections-max` places. When all are taken, one that is idle gives its place to the
//! newcomer, the longest idle first, so that sockets that say nothing keep nobody out. When none is idle, the newcomer
//! gets one of a few *reserved* places, where health and metrics are answered, and everything else with 503; these too
//! give way, the oldest first.
//!
//! # Invariants
//! - Only time in which the daemon waits for a peer counts against it: not the time in which a body waits for memory or
//!   storage, and not the time in which the daemon stood still (it is told by a look that comes late).

pub mod answer;
pub mod flow;
pub mod socket;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::LimitsSettings;
use crate::metrics::Metrics;
use crate::metrics::labels::RejectReason;
use crate::runtime::{Budgets, ByteBudget, Clock, PaidByBoth, Share};
use flow::{Allowance, Flow, PaceLimits, Verdict};

/// Between two looks, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A connection that is idle for less does not give its place away: its next request may be on its way.
const IDLE_BEFORE_GIVING_WAY: Duration = Duration::from_secs(1);
/// Life of a connection on a reserved place.
const RESERVED_LIFE: Duration = Duration::from_secs(5);
/// When memory is short, who holds some and gets nowhere gives way after this part of `limits.rate-window`. No sooner:
/// memory is short when everybody is busy, and then a client that means well may not get to send for many seconds.
const WHEN_SHORT: u32 = 2;
/// Bytes below which a peer frees nothing by giving way.
const HELD_BYTES_MIN: u64 = 64 << 10;
/// Memory of a connection in use, as the system counts it: two read buffers, one with the first bytes of a body that waits
/// for memory and one with what came after them, the state of its request, and half as much again that the allocator
/// keeps in fragments. An idle one has a quarter of it.
const CONNECTION_BYTES: u64 = 96 << 10;
/// What TLS adds: the buffers of records in both directions, and the state of a handshake.
const TLS_BYTES: u64 = 64 << 10;
/// Between two lines in the log.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Why a connection or a request was ended, as `esker_rejected_total` counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// No request came in time.
    Silent,
    /// A body came in too slowly. The door that answers counts it.
    SlowBody,
    /// An answer was taken too slowly.
    SlowReader,
    /// There was no place for the connection.
    Connections,
}

impl Reason {
    fn label(self) -> RejectReason {
        match self {
            Self::Silent => RejectReason::Silent,
            Self::SlowBody => RejectReason::Slow,
            Self::SlowReader => RejectReason::SlowReader,
            Self::Connections => RejectReason::Connections,
        }
    }
}

/// All connections. Clones share them.
#[derive(Clone)]
pub struct Peers(Arc<PeersShared>);

crate::runtime::opaque_debug!(Peers);

struct PeersShared {
    limits: LimitsSettings,
    metrics: Metrics,
    budgets: Budgets,
    open: Mutex<OpenPeers>,
    tally: Mutex<EndedPeers>,
}

#[derive(Default)]
struct OpenPeers {
    /// By age, the oldest first.
    peers: BTreeMap<u64, Seated>,
    last: u64,
    regular: usize,
    reserved: usize,
}

struct Seated {
    peer: Arc<Peer>,
    notes: Notes,
}

/// State of a connection at the last look.
struct Notes {
    begun: u64,
    read: u64,
    age: Duration,
    idle: Duration,
    /// Since when a head is arriving.
    head: Duration,
    out: Allowance,
}

/// Connections that were ended since the log last told of them.
#[derive(Default)]
struct EndedPeers {
    counts: BTreeMap<Reason, u64>,
    /// The address of the first of them, if it has one.
    example: Option<SocketAddr>,
    told: Option<Instant>,
}

/// One connection.
#[derive(Debug)]
pub struct Peer {
    address: Option<SocketAddr>,
    reserved: bool,
    /// The share of the budget that it may hold.
    share: Share,
    /// Memory for what it sends.
    memory: ByteBudget,
    read: AtomicU64,
    written: AtomicU64,
    /// Whether the socket takes no more for now.
    write_waits: AtomicBool,
    h2: AtomicBool,
    /// Whether it is another daemon of the cluster, which looks after its own clients.
    trusted: AtomicBool,
    begun: AtomicU64,
    in_progress: AtomicUsize,
    /// Locked after the list of all connections.
    flows: Mutex<Vec<Weak<Flow>>>,
    close: CancellationToken,
    cut: CancellationToken,
}

/// A request, or its answer, that is in progress until this is dropped.
#[derive(Debug)]
pub struct Busy(Arc<Peer>);

/// The place of a connection, given up when it is dropped.
pub struct Seat {
    peers: Peers,
    number: u64,
    peer: Arc<Peer>,
    /// The connection's own memory. `None` if connections have all of the budget that they may have.
    _paid: Option<PaidByBoth>,
}

crate::runtime::opaque_debug!(Seat);

/// The decision of a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// As HTTP wants: after the requests in progress, of which there are none.
    Close,
    Cut(Option<Reason>),
}

impl Peers {
    /// Nobody yet.
    pub fn new(limits: LimitsSettings, metrics: Metrics, budgets: &Budgets) -> Self {
        let budgets = budgets.clone();
        Self(Arc::new(PeersShared { limits, metrics, budgets, open: Mutex::default(), tally: Mutex::default() }))
    }

    /// A place for a new connection; another one may have to go for it.
    pub fn admit(&self, address: Option<SocketAddr>) -> Seat {
        self.admit_for(address, CONNECTION_BYTES)
    }

    /// The same for a connection that speaks TLS.
    pub fn admit_tls(&self, address: Option<SocketAddr>) -> Seat {
        self.admit_for(address, CONNECTION_BYTES + TLS_BYTES)
    }

    fn admit_for(&self, address: Option<SocketAddr>, bytes: u64) -> Seat {
        let limits = &self.0.limits;
        let (seat, left) = {
            let mut open = self.0.open.lock();
            let full = open.regular >= limits.connections_max;
            let idle = if full { open.longest_idle() } else { None };
            let reserved = full && idle.is_none();
            let crowded = reserved && open.reserved >= limits.connections_reserved;
            let leaves = if crowded { open.oldest_reserved() } else { idle };
            let left = leaves.and_then(|number| open.leave(number));
            let peer =
                Arc::new(Peer::new(address, reserved, limits.connection_memory_bytes, self.0.budgets.writes.clone()));
            let number = open.enter(Arc::clone(&peer), limits);
            let paid = self.0.budgets.pay_for_both(bytes);
            (Seat { peers: self.clone(), number, peer, _paid: paid }, left)
        };
        if let Some(left) = left {
            // One that is idle after a request loses nothing; the others never sent any.
            if left.begun.load(Ordering::Relaxed) == 0 {
                self.count(Reason::Silent, left.address);
            }
            left.cut.cancel();
        }
        seat
    }

    /// Counts what was ended for this reason.
    pub fn count(&self, reason: Reason, address: Option<SocketAddr>) {
        if reason != Reason::SlowBody {
            self.0.metrics.rejected.of(reason.label()).inc();
        }
        let mut tally = self.0.tally.lock();
        *tally.counts.entry(reason).or_default() += 1;
        tally.example = tally.example.or(address);
    }

    /// Looks at all connections until `stop`.
    pub async fn watch(self, stop: CancellationToken) {
        let limits = &self.0.limits;
        let shortest = limits.head_timeout.min(limits.idle_timeout).min(limits.rate_window);
        let every = (shortest / 8).clamp(Duration::from_millis(10), LOOK_EVERY);
        let mut before = Clock::instant();
        loop {
            tokio::select! {
                () = stop.cancelled() => return self.tell(),
                () = tokio::time::sleep(every) => {}
            }
            let now = Clock::instant();
            // A daemon that was stopped or starved blames nobody for the time that it lost: what its peers sent
            // meanwhile may wait in the sockets.
            let passed = now.duration_since(before).min(every * 2);
            before = now;
            self.look(passed);
            self.tell();
        }
    }

    fn look(&self, passed: Duration) {
        let limits = &self.0.limits;
        let pace =
            PaceLimits { bytes_per_second: limits.rate_bytes_min, window: limits.rate_window, passed, short: None };
        let bodies =
            PaceLimits { short: self.0.budgets.writes.is_short().then_some(limits.rate_window / WHEN_SHORT), ..pace };
        let answers =
            PaceLimits { short: self.0.budgets.reads.is_short().then_some(limits.rate_window / WHEN_SHORT), ..pace };
        let (mut ends, mut slow) = (vec![], vec![]);
        for Seated { peer, notes } in self.0.open.lock().peers.values_mut() {
            if peer.is_trusted() {
                ends.extend(peer.look(notes, limits, passed).map(|end| (Arc::clone(peer), end)));
                continue;
            }
            slow.extend(peer.slow_bodies(&bodies).map(|flow| (flow, peer.address)));
            let end = if peer.answers_are_slow(notes, &answers) {
                Some(End::Cut(Some(Reason::SlowReader)))
            } else {
                peer.look(notes, limits, passed)
            };
            ends.extend(end.map(|end| (Arc::clone(peer), end)));
        }
        for (flow, address) in slow {
            self.count(Reason::SlowBody, address);
            flow.give_up();
        }
        for (peer, end) in ends {
            match end {
                End::Close => peer.close.cancel(),
                End::Cut(_) if peer.cut.is_cancelled() => {}
                End::Cut(reason) => {
                    reason.into_iter().for_each(|reason| self.count(reason, peer.address));
                    peer.cut.cancel();
                }
            }
        }
    }

    /// Says what was ended, if anything was, once in a while.
    fn tell(&self) {
        let (counts, example) = {
            let mut tally = self.0.tally.lock();
            let now = Clock::instant();
            let recently = tally.told.is_some_and(|told| now.duration_since(told) < TELL_EVERY);
            if tally.counts.is_empty() || recently {
                return;
            }
            tally.told = Some(now);
            (std::mem::take(&mut tally.counts), tally.example.take())
        };
        let of = |reason| counts.get(&reason).copied().unwrap_or_default();
        tracing::warn!(
            silent = of(Reason::Silent),
            slow_bodies = of(Reason::SlowBody),
            slow_readers = of(Reason::SlowReader),
            without_place = of(Reason::Connections),
            example = example.map(tracing::field::display),
            "clients that got nowhere, or found no place, were turned away"
        );
    }
}

impl OpenPeers {
    fn enter(&mut self, peer: Arc<Peer>, limits: &LimitsSettings) -> u64 {
        self.last += 1;
        *self.places(peer.reserved) += 1;
        let notes = Notes {
            begun: 0,
            read: 0,
            age: Duration::ZERO,
            idle: Duration::ZERO,
            head: Duration::ZERO,
            out: Allowance::new(limits.rate_window),
        };
        self.peers.insert(self.last, Seated { peer, notes });
        self.last
    }

    /// Frees a place; `None` if it was free before.
    fn leave(&mut self, number: u64) -> Option<Arc<Peer>> {
        let Seated { peer, .. } = self.peers.remove(&number)?;
        *self.places(peer.reserved) -= 1;
        Some(peer)
    }

    fn places(&mut self, reserved: bool) -> &mut usize {
        if reserved { &mut self.reserved } else { &mut self.regular }
    }

    /// The connection on a regular place that has been idle for longest, and long enough.
    fn longest_idle(&self) -> Option<u64> {
        let regular = self.peers.iter().filter(|(_, seated)| !seated.peer.reserved && !seated.peer.is_busy());
        let idle = regular.filter(|(_, seated)| {
            // What began since the last look is not idle, whatever the notes say.
            let begun = seated.peer.begun.load(Ordering::Relaxed);
            begun == seated.notes.begun && seated.notes.idle >= IDLE_BEFORE_GIVING_WAY
        });
        // Of equals, the one that came first.
        idle.min_by_key(|(_, seated)| std::cmp::Reverse(seated.notes.idle)).map(|(number, _)| *number)
    }

    /// The oldest connection on a reserved place: one that never sent a request, if there is one.
    fn oldest_reserved(&self) -> Option<u64> {
        let reserved = self.peers.iter().filter(|(_, seated)| seated.peer.reserved && !seated.peer.is_trusted());
        reserved.min_by_key(|(_, seated)| seated.peer.begun.load(Ordering::Relaxed) > 0).map(|(number, _)| *number)
    }
}

impl Peer {
    fn new(address: Option<SocketAddr>, reserved: bool, memory_bytes: u64, memory: ByteBudget) -> Self {
        Self {
            address,
            reserved,
            share: Share::new(memory_bytes),
            memory,
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            write_waits: AtomicBool::new(false),
            h2: AtomicBool::new(false),
            trusted: AtomicBool::new(false),
            begun: AtomicU64::new(0),
            in_progress: AtomicUsize::new(0),
            flows: Mutex::default(),
            close: CancellationToken::new(),
            cut: CancellationToken::new(),
        }
    }

    /// Whether it is answered for health and metrics only.
    pub fn is_reserved(&self) -> bool {
        self.reserved
    }

    /// Where it comes from, if that is a network.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The share of the budget that it may hold.
    pub fn share(&self) -> &Share {
        &self.share
    }

    /// Cancelled when it should end as soon as HTTP allows.
    pub fn close(&self) -> &CancellationToken {
        &self.close
    }

    /// Cancelled when it has to end at once.
    pub fn cut(&self) -> &CancellationToken {
        &self.cut
    }

    /// It is another daemon of the cluster. Its requests are those of many clients: none of them may have it cut, and what they take
    /// was paid for, by connection, where they came in.
    pub fn trust(&self) {
        self.trusted.store(true, Ordering::Relaxed);
    }

    /// Whether it is.
    pub fn is_trusted(&self) -> bool {
        self.trusted.load(Ordering::Relaxed)
    }

    /// A request has come.
    pub fn begin(self: &Arc<Self>, h2: bool) -> Busy {
        self.h2.store(h2, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
        Busy::new(self)
    }

    /// Looks at `flow` for as long as somebody holds it.
    pub fn add(&self, flow: &Arc<Flow>) {
        let mut flows = self.flows.lock();
        flows.retain(|flow| flow.strong_count() > 0);
        flows.push(Arc::downgrade(flow));
    }

    fn is_busy(&self) -> bool {
        self.in_progress.load(Ordering::Relaxed) > 0 || self.write_waits.load(Ordering::Relaxed)
    }

    /// Bodies that come in too slowly, or whose memory others need.
    fn slow_bodies(&self, pace: &PaceLimits) -> impl Iterator<Item = Arc<Flow>> + use<> {
        let pace = PaceLimits { short: pace.short.filter(|_| self.share.held() >= HELD_BYTES_MIN), ..*pace };
        let flows: Vec<_> = self.flows.lock().iter().filter_map(Weak::upgrade).collect();
        flows.into_iter().filter(move |flow| flow.arrives() && flow.look(&pace) == Verdict::Slow)
    }

    /// Whether answers go out too slowly: by the socket, or one of several on it.
    fn answers_are_slow(&self, notes: &mut Notes, pace: &PaceLimits) -> bool {
        let pace = PaceLimits { short: pace.short.filter(|_| self.share.held() >= HELD_BYTES_MIN), ..*pace };
        let (moved, waits) = (self.written.load(Ordering::Relaxed), self.write_waits.load(Ordering::Relaxed));
        let socket = notes.out.look(moved, waits, &pace);
        let flows: Vec<_> = self.flows.lock().iter().filter_map(Weak::upgrade).collect();
        let mut leaving = flows.iter().filter(|flow| !flow.arrives());
        socket == Verdict::Slow || leaving.any(|flow| flow.look(&pace) == Verdict::Slow)
    }

    fn look(&self, notes: &mut Notes, limits: &LimitsSettings, passed: Duration) -> Option<End> {
        notes.age += passed;
        let (begun, read) = (self.begun.load(Ordering::Relaxed), self.read.load(Ordering::Relaxed));
        if self.reserved && !self.is_trusted() && notes.age >= RESERVED_LIFE.min(limits.head_timeout) {
            return Some(End::Cut((begun == 0).then_some(Reason::Silent)));
        }
        let came_and_went = std::mem::replace(&mut notes.begun, begun) != begun;
        if came_and_went || self.is_busy() {
            (notes.idle, notes.head, notes.read) = (Duration::ZERO, Duration::ZERO, read);
            return None;
        }
        notes.idle += passed;
        // With HTTP/2, bytes between requests are no head: pings, for example.
        let head_begun = begun == 0 || (read != notes.read && !self.h2.load(Ordering::Relaxed));
        if head_begun {
            notes.head += passed;
            return (notes.head >= limits.head_timeout).then_some(End::Cut(Some(Reason::Silent)));
        }
        match notes.idle.checked_sub(limits.idle_timeout) {
            None => None,
            Some(over) if over < limits.head_timeout => Some(End::Close),
            Some(_) => Some(End::Cut(None)),
        }
    }
}

impl Busy {
    fn new(peer: &Arc<Peer>) -> Self {
        peer.in_progress.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(peer))
    }

    /// The peer whose request it is.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.0
    }
}

impl Clone for Busy {
    fn clone(&self) -> Self {
        Self::new(&self.0)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.in_progress.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Seat {
    /// The connection on it.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // One that gave way has left before.
        drop(self.peers.0.open.lock().leave(self.number));
    }
}

#[cfg(test)]
mod tests;
