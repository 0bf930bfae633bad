//! Files that grow: what an append store has to do.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;

use super::StoreError;
use crate::model::PhysicalFileId;

/// From when on a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readers {
    /// From its first group on: a store keeps what others cannot see yet.
    AsItGrows,
    /// When it is closed.
    OnceClosed,
}

/// A store whose physical files grow and are synced.
#[async_trait]
pub trait AppendStore: fmt::Debug + Send + Sync {
    /// Creates a file; its name is durable when this returns.
    ///
    /// # Errors
    /// [`StoreError::Failed`], also when the name is taken.
    async fn create(&self, file: &PhysicalFileId) -> Result<Box<dyn GrowingFile>, StoreError>;

    /// The same for a file of which nothing is read before it is closed: the store need not keep what others cannot see yet.
    ///
    /// # Errors
    /// As [`Self::create`].
    async fn create_unread(&self, file: &PhysicalFileId) -> Result<Box<dyn GrowingFile>, StoreError> {
        self.create(file).await
    }
}

/// A physical file that grows. One task owns it, and is the only one that writes it.
///
/// # Errors
/// All methods fail with [`StoreError::Failed`]. If there was no room for the bytes, the file is as before and
/// [`Self::is_usable`]. After any other failure it takes nothing more, whatever is called, and what of the bytes is there is
/// not known: after a sync that failed, neither a kernel nor a pipeline of data nodes can be trusted with a second one.
///
/// # Cancel safety
/// Not cancel safe: after a call that was dropped the file is to be dropped, too.
#[async_trait]
pub trait GrowingFile: fmt::Debug + Send {
    /// Appends `parts` one after the other, and waits until they and all before them are durable.
    async fn append(&mut self, parts: Vec<Bytes>) -> Result<(), StoreError>;

    /// Appends `parts` without waiting for the disk; a later [`Self::append`] makes them durable, too.
    async fn append_unsynced(&mut self, parts: Vec<Bytes>) -> Result<(), StoreError>;

    /// Appends what nobody reads before the file was closed, its end: as [`Self::append`], but a store that keeps what others
    /// cannot see yet need not keep this. Nothing may be appended behind it.
    async fn append_end(&mut self, parts: Vec<Bytes>) -> Result<(), StoreError> {
        self.append(parts).await
    }

    /// Whether it takes more: nothing has failed, but for want of room.
    fn is_usable(&self) -> bool;

    /// Whether the store wants it to end, so that others have room. It takes more all the same.
    fn should_end(&self) -> bool {
        false
    }

    /// Nothing comes any more. When this returns all of it can be read by whoever opens it, and it is nobody's.
    async fn close(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// A second append store, in memory, for tests of whoever writes to one.
#[cfg(test)]
pub(crate) mod memory {
    use std::collections::{BTreeMap, VecDeque};
    use std::io;
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    /// The fate of a write.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Fault {
        /// There is no room, and nothing of it is there.
        Full,
        /// Half of it is there, and an error.
        Torn,
    }

    /// Files in memory. Clones share them.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct MemoryFiles(Arc<Mutex<Files>>);

    #[derive(Debug, Default)]
    struct Files {
        /// The durable bytes of each.
        durable: BTreeMap<String, Vec<u8>>,
        /// The bytes of each that were appended as its end.
        ends: BTreeMap<String, Vec<u8>>,
        /// The fate of each of the next writes; those after them succeed.
        faults: VecDeque<Option<Fault>>,
        /// Whether each file should end.
        short: bool,
    }

    impl MemoryFiles {
        /// Sets the fate of the next write, after those that were planned before.
        pub(crate) fn plan(&self, fault: Option<Fault>) {
            self.0.lock().faults.push_back(fault);
        }

        /// From now on every file should end, so that others have room.
        pub(crate) fn get_short(&self) {
            self.0.lock().short = true;
        }

        /// The bytes of a file that survive a power cut.
        pub(crate) fn durable(&self, file: &PhysicalFileId) -> Vec<u8> {
            self.0.lock().durable[file.as_str()].clone()
        }

        /// The bytes of a file that need not be kept for readers before it is closed.
        pub(crate) fn end(&self, file: &PhysicalFileId) -> Vec<u8> {
            self.0.lock().ends.get(file.as_str()).cloned().unwrap_or_default()
        }
    }

    #[async_trait]
    impl AppendStore for MemoryFiles {
        async fn create(&self, file: &PhysicalFileId) -> Result<Box<dyn GrowingFile>, StoreError> {
            let name = file.to_string();
            let mut files = self.0.lock();
            if files.durable.contains_key(&name) {
                return Err(StoreError::failed("create", &name, io::Error::from(io::ErrorKind::AlreadyExists)));
            }
            files.durable.insert(name.clone(), vec![]);
            Ok(Box::new(MemoryFile { files: self.clone(), name, unsynced: vec![], usable: true }))
        }
    }

    #[derive(Debug)]
    struct MemoryFile {
        files: MemoryFiles,
        name: String,
        unsynced: Vec<u8>,
        usable: bool,
    }

    impl MemoryFile {
        fn write(&mut self, parts: &[Bytes], sync: bool) -> io::Result<()> {
            if !self.usable {
                return Err(io::Error::other("an earlier call failed"));
            }
            let mut files = self.files.0.lock();
            let bytes = parts.concat();
            let fault = files.faults.pop_front().flatten();
            let whole = match fault {
                Some(Fault::Full) => return Err(io::ErrorKind::StorageFull.into()),
                Some(Fault::Torn) => &bytes[..bytes.len() / 2],
                None => &bytes[..],
            };
            self.unsynced.extend_from_slice(whole);
            self.usable = fault.is_none();
            if sync || !self.usable {
                files.durable.get_mut(&self.name).unwrap().append(&mut self.unsynced);
            }
            if self.usable { Ok(()) } else { Err(io::Error::other("the pipeline broke")) }
        }
    }

    #[async_trait]
    impl GrowingFile for MemoryFile {
        async fn append(&mut self, parts: Vec<Bytes>) -> Result<(), StoreError> {
            self.write(&parts, true).map_err(|error| StoreError::failed("append", &self.name, error))
        }

        async fn append_unsynced(&mut self, parts: Vec<Bytes>) -> Result<(), StoreError> {
            self.write(&parts, false).map_err(|error| StoreError::failed("append", &self.name, error))
        }

        async fn append_end(&mut self, parts: Vec<Bytes>) -> Result<(), StoreError> {
            let end = parts.concat();
            self.append(parts).await?;
            self.files.0.lock().ends.insert(self.name.clone(), end);
            Ok(())
        }

        fn is_usable(&self) -> bool {
            self.usable
        }

        fn should_end(&self) -> bool {
            self.files.0.lock().short
        }
    }
}

#[cfg(test)]
mod tests {
    use super::memory::{Fault, MemoryFiles};
    use super::*;
    use crate::metrics::Metrics;
    use crate::store::{LocalStore, Traffic};

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    /// Checks everything that an append store must do.
    async fn assert_appends(store: &dyn AppendStore, read: impl Fn(&PhysicalFileId) -> Vec<u8>) {
        let id = PhysicalFileId::new(None, 1, 7);
        let mut file = store.create(&id).await.unwrap();
        assert_eq!(read(&id), b"");

        file.append_unsynced(vec![bytes("ab"), bytes(""), bytes("c")]).await.unwrap();
        file.append(vec![bytes("de")]).await.unwrap();
        assert_eq!(read(&id), b"abcde");
        file.append_unsynced(vec![bytes("f")]).await.unwrap();
        file.append(vec![]).await.unwrap();

        assert_eq!(read(&id), b"abcdef");
        assert!(file.is_usable());
        assert!(store.create(&id).await.is_err(), "a name is created once");
        assert_eq!(read(&id), b"abcdef");
    }

    #[tokio::test]
    async fn a_local_disk_is_an_append_store() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::new(folder.path().to_owned(), Traffic::data(Metrics::new()));

        assert_appends(&store, |id| std::fs::read(folder.path().join(id.as_str())).unwrap()).await;
    }

    #[tokio::test]
    async fn the_store_in_memory_is_an_append_store() {
        let store = MemoryFiles::default();

        assert_appends(&store, |id| store.durable(id)).await;
    }

    #[tokio::test]
    async fn a_file_takes_more_after_it_had_no_room_and_nothing_after_any_other_failure() {
        let (store, id) = (MemoryFiles::default(), PhysicalFileId::new(None, 1, 7));
        let mut file = store.create(&id).await.unwrap();

        store.plan(Some(Fault::Full));
        assert!(file.append(vec![bytes("ab")]).await.unwrap_err().is_full());
        assert!(file.is_usable());
        file.append(vec![bytes("cd")]).await.unwrap();
        store.plan(Some(Fault::Torn));
        assert!(!file.append(vec![bytes("ef")]).await.unwrap_err().is_full());

        assert!(!file.is_usable());
        assert!(file.append(vec![]).await.is_err());
        assert_eq!(store.durable(&id), b"cde");
    }
}
