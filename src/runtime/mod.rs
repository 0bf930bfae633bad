//! What every part of the daemon runs on: time, randomness, tasks, and the budget of bytes in memory.
//!
//! Nothing outside this module reads a clock or draws a random number; tests bring their own of both.

mod budget;
mod clock;
mod entropy;
mod tasks;

pub use budget::{BudgetError, ByteBudget, PaidBytes};
pub use clock::Clock;
pub use entropy::Entropy;
pub use tasks::{Failure, TaskGroup};
