//! Proofs that an owner may still answer what it has read from its memory (`docs/cluster.md`, *Reads* and *Alone*).
//!
//! A new owner answers 300 ms after its fence at the earliest. So what was read from memory may be answered if, after it was
//! read, there is a proof of ownership that is at most 300 ms old: the begin of a commit that became durable, or of a READ of the map
//! that said "mine". Without one, a READ is made that begins after; whoever waits shares it. The only member needs none for 10 s
//! after such a READ: nobody takes over from it sooner.
//!
//! All times are those of `CLOCK_BOOTTIME`, which goes on while the process is stopped, and the machine suspended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::Mutex;

use crate::metrics::Metrics;
use crate::metrics::labels::ProofKind;
use crate::runtime::Clock;

/// For how long a proof counts.
pub const PROOF_COUNTS: Duration = Duration::from_millis(300);
/// For how long a READ counts that showed a member that it is the only one.
pub const ALONE_COUNTS: Duration = Duration::from_secs(10);
/// After so long nobody believes to be alone any more who does not know of another member.
pub const ALONE_ENDS: Duration = Duration::from_secs(15);

/// This daemon may not answer: it is the owner no more, or cannot tell.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NotProven {
    /// Another one is.
    #[error("another daemon of the cluster has taken over")]
    NotOwner,
    /// Storage does not tell.
    #[error("it cannot be told whether another daemon has taken over: {0}")]
    Unknown(String),
}

/// What a READ says of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The shard is its own.
    Mine,
    /// The same, and there is no other member.
    MineAlone,
    /// It is not.
    NotMine,
}

/// Where proofs come from.
pub trait Evidence: Send + Sync {
    /// READs the map. Returns when the READ began, in time since the boot, and what it says.
    fn read_map(&self) -> BoxFuture<'_, Result<(Duration, Standing), String>>;

    /// The begin of the last commit that became durable, in milliseconds since the boot; 0 before the first.
    fn last_commit(&self) -> u64;

    /// Whether the last map that is known has no other member. Who tells others of that map calls this afterwards.
    fn is_alone(&self) -> bool;
}

/// The proofs of one ownership. Clones share them.
#[derive(Clone)]
pub struct Proofs {
    shared: Arc<Shared>,
}

crate::runtime::opaque_debug!(Proofs);

struct Shared {
    evidence: Box<dyn Evidence>,
    clock: Clock,
    /// The begin of the last READ that said "mine", in milliseconds since the boot.
    last_read: AtomicU64,
    /// Until then it is alone, likewise, if the map that is known says so, too.
    alone_until: AtomicU64,
    /// Held by whoever READs; when the last READ that failed began, and why it did.
    reading: Mutex<Option<(Duration, String)>>,
    metrics: Metrics,
}

fn millis(since_boot: Duration) -> u64 {
    u64::try_from(since_boot.as_millis()).unwrap_or(u64::MAX)
}

impl Proofs {
    /// Of an owner with this evidence, on the machine of `clock`.
    pub fn new(evidence: impl Evidence + 'static, clock: Clock, metrics: Metrics) -> Self {
        let (last_read, alone_until) = (AtomicU64::new(0), AtomicU64::new(0));
        let (evidence, reading) = (Box::new(evidence), Mutex::new(None));
        Self { shared: Arc::new(Shared { evidence, clock, last_read, alone_until, reading, metrics }) }
    }

    /// Resolves when what was read before the call may be answered.
    ///
    /// # Errors
    /// [`NotProven`]: nothing of it may be answered.
    pub async fn prove(&self) -> Result<(), NotProven> {
        let kind = match self.standing_proof(self.shared.clock.since_boot()) {
            Some(kind) => kind,
            None => {
                self.read_after(self.shared.clock.since_boot()).await?;
                ProofKind::Read
            }
        };
        self.shared.metrics.read_proofs.of(kind).inc();
        Ok(())
    }

    /// The proof that counts now, if one does.
    fn standing_proof(&self, now: Duration) -> Option<ProofKind> {
        let now = millis(now);
        if now <= self.shared.alone_until.load(Ordering::Acquire) && self.shared.evidence.is_alone() {
            return Some(ProofKind::Alone);
        }
        let last = self.shared.evidence.last_commit().max(self.shared.last_read.load(Ordering::Acquire));
        // A clock that stands before its own proof is no clock.
        (last <= now && now - last <= millis(PROOF_COUNTS)).then_some(ProofKind::Recent)
    }

    /// Waits for a READ that began after `view`.
    async fn read_after(&self, view: Duration) -> Result<(), NotProven> {
        let mut failed = self.shared.reading.lock().await;
        // Somebody else may have made it meanwhile, or have failed to.
        if self.shared.last_read.load(Ordering::Acquire) > millis(view) {
            return Ok(());
        }
        if let Some((_, why)) = failed.as_ref().filter(|(begun, _)| *begun > view) {
            return Err(NotProven::Unknown(why.clone()));
        }
        let begun = self.shared.clock.since_boot();
        let read = self.read().await;
        if let Err(NotProven::Unknown(why)) = &read {
            *failed = Some((begun, why.clone()));
        }
        read
    }

    /// READs the map now.
    ///
    /// # Errors
    /// [`NotProven`] if it does not say "mine".
    pub async fn read(&self) -> Result<(), NotProven> {
        let (begun, standing) = self.shared.evidence.read_map().await.map_err(NotProven::Unknown)?;
        match standing {
            Standing::NotMine => {
                self.shared.alone_until.store(0, Ordering::Release);
                return Err(NotProven::NotOwner);
            }
            Standing::Mine => self.shared.alone_until.store(0, Ordering::Release),
            Standing::MineAlone => {
                self.shared.alone_until.store(millis(begun + ALONE_COUNTS), Ordering::Release);
            }
        }
        self.shared.last_read.fetch_max(millis(begun), Ordering::AcqRel);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    use parking_lot::Mutex as PlainMutex;

    use super::*;

    struct World {
        reads: AtomicUsize,
        says: PlainMutex<Result<Standing, String>>,
        alone: AtomicBool,
        commit: AtomicU64,
        takes: Duration,
    }

    impl Evidence for Arc<World> {
        fn read_map(&self) -> BoxFuture<'_, Result<(Duration, Standing), String>> {
            Box::pin(async move {
                let begun = Clock::System.since_boot();
                self.reads.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(self.takes).await;
                self.says.lock().clone().map(|standing| (begun, standing))
            })
        }

        fn last_commit(&self) -> u64 {
            self.commit.load(Ordering::SeqCst)
        }

        fn is_alone(&self) -> bool {
            self.alone.load(Ordering::SeqCst)
        }
    }

    fn world(standing: Standing, takes: Duration) -> (Arc<World>, Proofs) {
        let world = Arc::new(World {
            reads: AtomicUsize::new(0),
            says: PlainMutex::new(Ok(standing)),
            alone: AtomicBool::new(standing == Standing::MineAlone),
            commit: AtomicU64::new(0),
            takes,
        });
        (Arc::clone(&world), Proofs::new(world, Clock::System, Metrics::new()))
    }

    #[tokio::test]
    async fn without_a_proof_one_read_serves_all_who_waited_before_it_began() {
        let (world, proofs) = world(Standing::Mine, Duration::from_millis(50));

        let all = futures::future::join_all((0..20).map(|_| proofs.prove())).await;

        assert!(all.iter().all(Result::is_ok));
        assert!(world.reads.load(Ordering::SeqCst) <= 2, "the first, and one that began after the others had come");
    }

    #[tokio::test]
    async fn a_read_and_a_commit_count_for_300_ms_and_no_longer() {
        let (world, proofs) = world(Standing::Mine, Duration::ZERO);
        proofs.prove().await.unwrap();
        let now = Clock::System.since_boot();

        assert_eq!(proofs.standing_proof(now), Some(ProofKind::Recent));
        assert_eq!(proofs.standing_proof(now + PROOF_COUNTS + Duration::from_millis(1)), None);

        world.commit.store(millis(now) + 1000, Ordering::SeqCst);
        assert_eq!(proofs.standing_proof(now), None, "a proof from later than now");
        assert!(proofs.standing_proof(now + Duration::from_millis(1300)).is_some());
        assert!(proofs.standing_proof(now + Duration::from_millis(1301)).is_none());
    }

    #[tokio::test]
    async fn the_only_member_needs_no_proof_for_10_s_unless_another_one_comes() {
        let (world, proofs) = world(Standing::MineAlone, Duration::ZERO);
        proofs.prove().await.unwrap();
        let now = Clock::System.since_boot();

        assert_eq!(proofs.standing_proof(now + Duration::from_secs(9)), Some(ProofKind::Alone));
        assert_eq!(proofs.standing_proof(now + Duration::from_secs(11)), None);
        world.alone.store(false, Ordering::SeqCst);
        assert_eq!(proofs.standing_proof(now + Duration::from_secs(1)), None);
        assert_eq!(world.reads.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn who_is_not_the_owner_or_cannot_tell_proves_nothing() {
        let (world, proofs) = world(Standing::NotMine, Duration::ZERO);
        assert!(matches!(proofs.prove().await, Err(NotProven::NotOwner)));

        *world.says.lock() = Err("no storage".to_owned());
        assert!(matches!(proofs.prove().await, Err(NotProven::Unknown(_))));
    }
}
