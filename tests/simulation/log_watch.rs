//! Watches the names of the catalogs' logs: behind a fence nobody writes but who has put it there.
//!
//! A process writes a fence, and then its batches, each under the next free name. A fence has no records, and so a length that no batch
//! has: that of the very first object of a log, which is one.

use std::collections::BTreeMap;

use object_store::path::Path;
use parking_lot::Mutex;

#[derive(Debug, Default)]
pub(crate) struct LogWatch(Mutex<BTreeMap<String, Log>>);

#[derive(Debug, Default)]
struct Log {
    /// The length of a fence.
    fence_len: u64,
    /// Who wrote each name, and whether a fence.
    names: BTreeMap<String, (u64, bool)>,
}

impl LogWatch {
    /// A process has written an object of a log. Returns what is wrong with that.
    pub(crate) fn wrote(&self, path: &Path, process: u64, len: u64) -> Option<String> {
        let (folder, name) = path.as_ref().rsplit_once('/')?;
        let mut logs = self.0.lock();
        let log = logs.entry(folder.to_owned()).or_default();
        if log.names.is_empty() {
            log.fence_len = len;
        }
        let fence = len == log.fence_len;
        let before = log.names.range(..name.to_owned());
        let owner = before.rev().find(|(_, (_, fence))| *fence).map(|(_, (owner, _))| *owner);
        log.names.insert(name.to_owned(), (process, fence));
        (!fence && owner != Some(process)).then(|| format!("{process} wrote {path} behind the fence of {owner:?}"))
    }

    /// How many fences there are.
    pub(crate) fn fences(&self) -> usize {
        self.0.lock().values().flat_map(|log| log.names.values()).filter(|(_, fence)| *fence).count()
    }
}
