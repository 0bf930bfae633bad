//! File descriptors: each connection and each open file is one.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the limit of this process on descriptors as far as it may go, and returns it; `None` is no limit.
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

/// Number of `wanted` connections that fit below a limit on descriptors besides `others`; one at least.
pub fn connections_below(limit: Option<u64>, wanted: usize, others: usize) -> usize {
    let room = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    wanted.min(room.saturating_sub(others)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_below_the_limit_with_everything_else() {
        assert_eq!(connections_below(Some(1 << 20), 4096, 500), 4096);
        assert_eq!(connections_below(Some(1024), 4096, 500), 524);
        assert_eq!(connections_below(Some(64), 4096, 500), 1);
        assert_eq!(connections_below(None, 4096, 500), 4096);
    }
}
