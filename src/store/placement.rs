//! Where the catalog's journal lives.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::path::Path;

use super::{CATALOG_SIDE, Capabilities, DiskSpace, IdentitySlot, LogFolder, Traffic};

/// A place for the catalog's journal.
#[derive(Debug, Clone)]
pub enum Placement {
    /// On an object store, under `prefix`. The store must honour creates on condition.
    Object {
        /// The store.
        store: Arc<dyn ObjectStore>,
        /// Everything the journal writes has a name below it.
        prefix: Path,
        /// The abilities of the store.
        can: Capabilities,
        /// Where a new journal's log goes, if files there can be appended to; else it is made of objects.
        log: Option<Arc<dyn LogFolder>>,
    },
    /// In a folder on a local disk, which is created if need be: the database in `db`, the log in
    /// `log`, the lock in `LOCK`, what was cut off the log in `lost+found`.
    Local {
        /// The folder.
        folder: PathBuf,
        /// Counts what is written and read there.
        traffic: Traffic,
        /// The room on its disk.
        space: DiskSpace,
    },
}

impl Placement {
    /// The abilities of the place.
    pub fn capabilities(&self) -> Capabilities {
        match self {
            Self::Local { .. } => Capabilities::LOCAL,
            Self::Object { can, .. } => *can,
        }
    }

    /// The place of the catalog of a store that is in `folders` of this one's. Only on an object store there are such.
    #[must_use]
    pub fn below(&self, folders: &[String]) -> Self {
        let mut below = self.clone();
        if let Self::Object { prefix, .. } = &mut below {
            let mut parts: Vec<_> = prefix.parts().map(|part| part.as_ref().to_owned()).collect();
            let catalog = parts.pop();
            *prefix = Path::from_iter(parts.iter().chain(folders).chain(&catalog).map(String::as_str));
        }
        below
    }

    /// The disk that it is on; `None` where it is on no disk of this machine.
    pub fn disk(&self) -> Option<&DiskSpace> {
        match self {
            Self::Local { space, .. } => Some(space),
            Self::Object { .. } => None,
        }
    }

    /// Where it says which store's catalog this is. It can be read without opening the journal, which would shut out the
    /// owner of a journal on an object store.
    pub fn identity_slot(&self) -> IdentitySlot {
        match self {
            Self::Local { folder, .. } => IdentitySlot::File(folder.join(CATALOG_SIDE)),
            Self::Object { store, prefix, .. } => {
                IdentitySlot::Object { store: Arc::clone(store), path: prefix.clone().join(CATALOG_SIDE) }
            }
        }
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object { prefix, .. } => write!(f, "{prefix}"),
            Self::Local { folder, .. } => write!(f, "{}", folder.display()),
        }
    }
}
