//! Measures the bytes that move between a peer and the daemon, and judges whether they move fast enough.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::task::AtomicWaker;
use parking_lot::Mutex;

/// The pace that is fast enough, and the time since the last look.
#[derive(Debug, Clone, Copy)]
pub struct PaceLimits {
    /// 0: any pace is.
    pub bytes_per_second: u64,
    /// The time by which a peer may fall behind.
    pub window: Duration,
    /// Since the last look.
    pub passed: Duration,
    /// The time by which it may fall behind while others wait for the memory that it holds, if any do.
    pub short: Option<Duration>,
}

/// The result of a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It moves, or it is not the peer that is waited for.
    Fine,
    /// The peer is too slow.
    Slow,
}

/// The time by which a peer may still fall behind.
///
/// It is time, not bytes: waiting for the peer uses it up, and each byte that moves gives back the time in which it had
/// to. So a peer at the least rate or above never runs out, in whatever lumps its system passes the bytes on, as long as
/// no lump takes longer than the window.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    moved: u64,
    left: f64,
    /// The same while others wait for what the peer holds; whole whenever they do not.
    left_short: f64,
}

impl Allowance {
    /// All of a window.
    pub fn new(window: Duration) -> Self {
        Self { moved: 0, left: window.as_secs_f64(), left_short: f64::MAX }
    }

    /// Takes note of how many bytes have moved by now, and whether the peer is waited for.
    pub fn look(&mut self, moved: u64, waits: bool, pace: &PaceLimits) -> Verdict {
        let more = moved.saturating_sub(self.moved) as f64;
        self.moved = moved;
        if pace.bytes_per_second == 0 {
            return Verdict::Fine;
        }
        let gained = more / pace.bytes_per_second as f64;
        let used = if waits { pace.passed.as_secs_f64() } else { 0.0 };
        self.left = (self.left + gained).min(pace.window.as_secs_f64()) - used;
        self.left_short = match pace.short.map(|short| short.min(pace.window).as_secs_f64()) {
            Some(short) => (self.left_short + gained).min(short) - used,
            None => f64::MAX,
        };
        if self.left.min(self.left_short) < 0.0 { Verdict::Slow } else { Verdict::Fine }
    }
}

/// A body that arrives, or an answer that leaves beside others on the same connection.
#[derive(Debug)]
pub struct Flow {
    arrives: bool,
    moved: AtomicU64,
    /// Bytes that the peer has to take, or 1 while it has to send some.
    waiting_for: AtomicU64,
    given_up: AtomicBool,
    reader: AtomicWaker,
    allowance: Mutex<Allowance>,
}

impl Flow {
    /// The body of a request.
    pub fn arriving(window: Duration) -> Self {
        Self::new(true, window)
    }

    /// The body of an answer.
    pub fn leaving(window: Duration) -> Self {
        Self::new(false, window)
    }

    fn new(arrives: bool, window: Duration) -> Self {
        Self {
            arrives,
            moved: AtomicU64::new(0),
            waiting_for: AtomicU64::new(0),
            given_up: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            allowance: Mutex::new(Allowance::new(window)),
        }
    }

    /// Whether it is the body of a request.
    pub fn arrives(&self) -> bool {
        self.arrives
    }

    /// Takes note of what has moved since the last look.
    pub fn look(&self, pace: &PaceLimits) -> Verdict {
        if self.given_up.load(Ordering::Relaxed) {
            return Verdict::Fine;
        }
        let (moved, waits) = (self.moved.load(Ordering::Relaxed), self.waiting_for.load(Ordering::Relaxed) > 0);
        self.allowance.lock().look(moved, waits, pace)
    }

    /// Tells whoever reads the body that no more will come.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
        self.reader.wake();
    }

    /// Whether [`Self::give_up`] was called; if not, whoever polls is woken when it is.
    pub fn poll_given_up(&self, cx: &Context<'_>) -> Poll<()> {
        // Registered before the look, so that no call between them is missed.
        self.reader.register(cx.waker());
        if self.given_up.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// The reader has asked for bytes, and these have come: `None` if it waits for them.
    pub fn asked(&self, came: Option<u64>) {
        self.waiting_for.store(u64::from(came.is_none()), Ordering::Relaxed);
        self.moved.fetch_add(came.unwrap_or(0), Ordering::Relaxed);
    }

    /// Bytes were handed out, and the peer has yet to take them.
    pub fn handed_out(&self, bytes: u64) {
        self.waiting_for.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The peer has taken them.
    pub fn taken(&self, bytes: u64) {
        self.waiting_for.fetch_sub(bytes, Ordering::Relaxed);
        self.moved.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: PaceLimits = PaceLimits {
        bytes_per_second: 1000,
        window: Duration::from_secs(60),
        passed: Duration::from_secs(1),
        short: None,
    };

    /// Seconds of waiting after which a peer is still fine that moves `bytes` every `every` seconds.
    fn lasts(bytes: u64, every: u64, pace: PaceLimits) -> Option<u64> {
        let (mut allowance, mut moved) = (Allowance::new(pace.window), 0);
        (1..10_000).find(|second| {
            moved += if second % every == 0 { bytes } else { 0 };
            allowance.look(moved, true, &pace) == Verdict::Slow
        })
    }

    #[test]
    fn who_stands_still_or_trickles_is_slow_after_a_window() {
        assert_eq!(lasts(0, 1, PACE), Some(61));
        assert_eq!(lasts(1, 45, PACE), Some(61));
        assert!((110..130).contains(&lasts(500, 1, PACE).unwrap()), "half the rate falls behind half as fast");
    }

    #[test]
    fn who_keeps_the_rate_is_never_slow_in_whatever_lumps() {
        assert_eq!(lasts(1000, 1, PACE), None);
        assert_eq!(lasts(50_000, 50, PACE), None);
        assert_eq!(lasts(10 << 20, 59, PACE), None);
        assert_eq!(lasts(10 << 20, 75, PACE), Some(61), "one lump does not pay for hours");
    }

    #[test]
    fn when_others_wait_for_its_memory_it_is_slow_sooner_and_only_then() {
        let short = PaceLimits { short: Some(Duration::from_secs(2)), ..PACE };
        assert_eq!(lasts(1, 45, short), Some(3));
        assert_eq!(lasts(1000, 1, short), None);

        let mut allowance = Allowance::new(PACE.window);
        for second in 0..55 {
            let pace = if second % 2 == 0 { &short } else { &PACE };
            assert_eq!(allowance.look(0, true, pace), Verdict::Fine, "it was never short for long");
        }
    }

    #[test]
    fn time_in_which_nobody_waits_for_the_peer_is_free() {
        let mut allowance = Allowance::new(PACE.window);

        assert!((0..1000).all(|_| allowance.look(0, false, &PACE) == Verdict::Fine));
        assert!((0..60).all(|_| allowance.look(0, true, &PACE) == Verdict::Fine));
    }

    #[test]
    fn without_a_rate_nobody_is_slow() {
        assert_eq!(lasts(0, 1, PaceLimits { bytes_per_second: 0, ..PACE }), None);
    }
}
