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

/// Connections and open files below which a daemon turns most of its clients away.
const CONNECTIONS_MIN: usize = 64;
const FILES_MIN: usize = 16;

/// Descriptors for what comes and goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    /// Connections at a time.
    pub connections: usize,
    /// Open physical files at a time.
    pub files: usize,
}

impl Descriptors {
    /// As many of these as fit below a limit beside `others`: fewer connections first, and once they are few, fewer files.
    ///
    /// # Errors
    /// The limit that is needed at least.
    pub fn below(self, limit: Option<u64>, others: usize) -> Result<Self, usize> {
        let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let (connections_min, files_min) = (self.connections.min(CONNECTIONS_MIN), self.files.min(FILES_MIN));
        let needed = others + connections_min + files_min;
        let room = limit.checked_sub(others).filter(|_| limit >= needed).ok_or(needed)?;
        let files = self.files.min(room - connections_min);
        Ok(Self { connections: self.connections.min(room - files), files })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_and_files_fit_below_the_limit_with_everything_else() {
        let wanted = Descriptors { connections: 4096, files: 256 };
        let fits = |limit| wanted.below(limit, 300).map(|fits| (fits.connections, fits.files));

        assert_eq!(fits(None), Ok((4096, 256)));
        assert_eq!(fits(Some(1 << 20)), Ok((4096, 256)));
        assert_eq!(fits(Some(1024)), Ok((468, 256)));
        assert_eq!(fits(Some(512)), Ok((64, 148)));
        assert_eq!(fits(Some(380)), Ok((64, 16)));
        assert_eq!(fits(Some(379)), Err(380));
        let few = Descriptors { connections: 8, files: 256 };
        assert_eq!(few.below(Some(400), 300), Ok(Descriptors { connections: 8, files: 92 }));
    }
}
