//! Tells files apart, whatever their names.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

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
