//! Randomness.

use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use ulid::Ulid;

use super::Clock;

/// The daemon's only source of randomness. With a seed, a run draws the same numbers again.
#[derive(Debug, Clone)]
pub struct Entropy {
    rng: Arc<Mutex<StdRng>>,
    clock: Clock,
}

impl Entropy {
    /// Seeded by the operating system.
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the system for randomness")]
    pub fn from_os(clock: Clock) -> Self {
        Self { rng: Arc::new(Mutex::new(StdRng::from_os_rng())), clock }
    }

    /// Seeded by `seed`.
    pub fn from_seed(seed: u64, clock: Clock) -> Self {
        Self { rng: Arc::new(Mutex::new(StdRng::seed_from_u64(seed))), clock }
    }

    /// A new name: 48 bits of time in milliseconds, 80 random bits.
    pub fn ulid(&self) -> u128 {
        let random = {
            let mut rng = self.rng.lock();
            (u128::from(rng.next_u64()) << 64) | u128::from(rng.next_u64())
        };
        Ulid::from_parts(self.clock.now().0, random).0
    }

    /// `bytes` random bytes in lower-case hex.
    pub fn hex(&self, bytes: usize) -> String {
        let mut buffer = vec![0; bytes];
        self.rng.lock().fill_bytes(&mut buffer);
        hex::encode(buffer)
    }
}
