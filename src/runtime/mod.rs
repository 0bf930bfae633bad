//! The ground that every part of the daemon stands on: time, randomness, tasks and their answers, the network, and the budget of
//! bytes in memory.
//!
//! Nothing outside this module reads a clock or draws a random number; tests bring their own of both.

mod budget;
mod buffer;
mod clock;
pub mod descriptors;
mod entropy;
mod floor;
mod leases;
pub mod network;
mod opaque;
mod payer;
pub mod presence;
mod reply;
mod tasks;

pub use budget::{BudgetError, Budgets, ByteBudget, PaidByBoth, PaidBytes};
pub use buffer::Buffer;
pub use clock::{Clock, MachineClocks};
pub use entropy::Entropy;
pub use floor::{Ages, Floored};
pub use leases::{Lease, Leases, Reading, Ticket};
pub(crate) use opaque::opaque_debug;
pub use payer::{Payer, Share};
pub use reply::reply;
pub use tasks::{Failure, TaskGroup};
