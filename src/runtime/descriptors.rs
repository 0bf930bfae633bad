//! File descriptors: each connection and each open file is one.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the limit of this process on descriptors as far as it may go, and returns it; none is no limit.
///
/// The usual limit of 1024 is there for programs that use `select`, and lower than `limits.connections-max`.
pub fn raise_limit() -> Option<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    let before = limit.current;
    limit.current = limit.maximum;
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => limit.current,
        Err(_) => before,
    }
}
