//! Tells files apart, whatever their names.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A file's number on its device. While the file is open no other one gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    device: u64,
    number: u64,
}

impl From<&Metadata> for Inode {
    fn from(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), number: metadata.ino() }
    }
}

impl Inode {
    /// Whether the path leads to this file. Blocks for a moment.
    ///
    /// # Errors
    /// The operating system's, if it does not tell.
    pub fn is_at(self, path: &Path) -> io::Result<bool> {
        match fs::metadata(path) {
            Ok(found) => Ok(Self::from(&found) == self),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// A file or folder that is open, so that its number stays its own.
#[derive(Debug)]
pub struct HeldInode {
    inode: Inode,
    _open: File,
}

impl HeldInode {
    /// Holds what the path leads to now.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let open = File::open(path)?;
        Ok(Self { inode: Inode::from(&open.metadata()?), _open: open })
    }

    /// Which one it is.
    pub fn inode(&self) -> Inode {
        self.inode
    }
}
