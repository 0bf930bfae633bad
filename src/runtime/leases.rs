//! Leases: who is still reading what was there a moment ago.
//!
//! A reader begins a lease before it looks anything up and drops it when its last byte is out. Whoever wants to take bytes
//! away makes them unfindable first, then asks for a [`Leases::ticket`], and waits until [`Leases::all_began_after`] it:
//! every reader that may have found them before has left. So nothing is taken from under a read, however long it lasts, and
//! nothing waits for a time that might be too short.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// All leases of one daemon. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Leases(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    now: u64,
    /// How many leases began at each point.
    began: BTreeMap<u64, usize>,
}

/// Keeps what its holder may have looked up from being taken away. Dropped, it ends.
#[derive(Debug)]
pub struct Lease {
    leases: Leases,
    began: u64,
}

/// A point in the order of leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

impl Leases {
    /// Begins a lease.
    pub fn begin(&self) -> Lease {
        let mut held = self.0.lock();
        let began = held.now;
        *held.began.entry(began).or_default() += 1;
        drop(held);
        Lease { leases: self.clone(), began }
    }

    /// Now: leases that begin later cannot find what is unfindable by now.
    pub fn ticket(&self) -> Ticket {
        let mut held = self.0.lock();
        held.now += 1;
        Ticket(held.now)
    }

    /// Whether every lease that is held began after `ticket`.
    pub fn all_began_after(&self, ticket: Ticket) -> bool {
        self.0.lock().began.first_key_value().is_none_or(|(began, _)| *began >= ticket.0)
    }

    /// How many are held.
    pub fn held(&self) -> usize {
        self.0.lock().began.values().sum()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut held = self.leases.0.lock();
        if let Some(count) = held.began.get_mut(&self.began) {
            *count -= 1;
            if *count == 0 {
                held.began.remove(&self.began);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_waits_for_the_leases_that_began_before_it_and_for_no_others() {
        let leases = Leases::default();
        let before = leases.begin();
        let ticket = leases.ticket();
        let after = leases.begin();
        assert!(!leases.all_began_after(ticket));

        drop(before);

        assert!(leases.all_began_after(ticket));
        assert_eq!(leases.held(), 1);
        drop(after);
        assert_eq!(leases.held(), 0);
    }
}
