//! The options of the bench.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

/// What happens to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemberFate {
    /// SIGKILL.
    Killed,
    /// SIGSTOP; it goes on (SIGCONT) when the others have taken over.
    Silent,
    /// SIGTERM.
    Ended,
}

impl MemberFate {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Silent => "silent",
            Self::Ended => "ended",
        }
    }
}

/// The options of the bench.
#[derive(Debug, Clone)]
pub struct FailoverOptions {
    /// The `esker` program that is started.
    pub program: PathBuf,
    /// Daemons.
    pub members: usize,
    /// Clients.
    pub clients: usize,
    /// What happens in each round, in turn.
    pub fates: Vec<MemberFate>,
    /// Rounds.
    pub rounds: usize,
    /// Time between two rounds. An owner that has come to the catalog less than 5 s before is left alone while it is only silent.
    pub pause: Duration,
    /// Keys of the daemons that are set; `store.url` is needed.
    pub set: Vec<(String, String)>,
    /// Where the folders of logs are made, and removed in the end.
    pub data_dir: PathBuf,
}
