//! What every part of the daemon runs on: time, randomness, tasks, and the budget of bytes in memory.
//!
//! Nothing outside this module reads a clock or draws a random number; tests bring their own of both.

mod budget;
mod buffer;
mod clock;
pub mod descriptors;
mod entropy;
mod floor;
mod leases;
mod payer;
mod tasks;

pub use budget::{BudgetError, Budgets, ByteBudget, PaidBytes};
pub use buffer::Buffer;
pub use clock::Clock;
pub use entropy::Entropy;
pub use floor::{Ages, Floored};
pub use leases::{Lease, Leases, Reading, Ticket};
pub use payer::{Payer, Share};
pub use tasks::{Failure, TaskGroup};
