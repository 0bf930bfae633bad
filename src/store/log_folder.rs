//! A folder for the catalog's log, on a store where an open file is its writer's.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;

use super::{GrowingFile, StoreError};

/// The bytes of a file that can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VisibleBytes {
    /// From its start on.
    pub bytes: Bytes,
    /// Its length as far as that was synced: more than the bytes while somebody has it open.
    pub len: u64,
}

impl VisibleBytes {
    /// Whether nothing of it is hidden.
    pub fn is_all(&self) -> bool {
        self.bytes.len() as u64 >= self.len
    }
}

/// A folder of files that grow. Whoever writes one has it until it is closed, or released for somebody else: nothing is added
/// to it then.
///
/// # Errors
/// All methods fail with [`StoreError`]: whether the request was carried out is not known then.
#[async_trait]
pub trait LogFolder: fmt::Debug + Send + Sync {
    /// A name for this opening of the store, which no other one has.
    fn owner(&self) -> &str;

    /// The length at which a file has to end; `None` if it is not known.
    fn file_bytes_max(&self) -> Option<u64>;

    /// The names of the files. A list that is asked for after a create was answered shows that file.
    async fn list(&self) -> Result<Vec<String>, StoreError>;

    /// Creates a file, and the folder. Fails if the name is taken.
    async fn create(&self, name: &str) -> Result<Box<dyn GrowingFile>, StoreError>;

    /// Closes a file for whoever writes it. When this returns, nothing is added to it any more. Returns its length; `None` if
    /// there is no such file.
    async fn release(&self, name: &str) -> Result<Option<u64>, StoreError>;

    /// Reads a file, of which the last bytes may be hidden while it is open. `None` if there is no such file.
    async fn read(&self, name: &str) -> Result<Option<VisibleBytes>, StoreError>;

    /// Deletes a file, also one that is open: whoever writes it cannot go on. It is no error if there is none.
    async fn delete(&self, name: &str) -> Result<(), StoreError>;
}

/// A folder in memory, for tests: its owners crash, lose answers, and stand still while others go on.
#[cfg(test)]
pub(crate) mod memory {
    use std::collections::BTreeMap;
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use futures::future::BoxFuture;
    use parking_lot::Mutex;
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// The fate of a call.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Fate {
        /// It is not carried out, and fails.
        Fails,
        /// It is carried out, and its answer lost.
        AnswerLost,
        /// Half of the bytes arrive, and it fails. Of other calls nothing is carried out.
        Torn,
        /// It fails, and is carried out later: bytes when the file is released, a create after the next list of somebody else.
        Late,
        /// The owner dies before it.
        DiesBefore,
        /// The owner dies after it.
        DiesAfter,
        /// The owner dies when half of the bytes have arrived.
        DiesWithin,
    }

    pub(crate) const FATES: [Fate; 7] =
        [Fate::Fails, Fate::AnswerLost, Fate::Torn, Fate::Late, Fate::DiesBefore, Fate::DiesAfter, Fate::DiesWithin];

    /// Whether something happens before a call is carried out or after it.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum When {
        Before,
        After,
    }

    #[derive(Debug, Default)]
    struct MemoryFile {
        bytes: Vec<u8>,
        /// Arrives when the file is released.
        late: Vec<u8>,
        /// Who may write it.
        writer: Option<u64>,
    }

    #[derive(Debug, Default)]
    struct Files {
        files: BTreeMap<String, MemoryFile>,
        /// Creates that are carried out later, with their owners.
        late: Vec<(String, String)>,
        writers: u64,
    }

    /// What happens in the middle of a call.
    type Hook = (u64, When, BoxFuture<'static, ()>);

    /// The folder as one owner has it. Others are made with [`Self::owner_of_the_same`].
    #[derive(Clone)]
    pub(crate) struct MemoryLogFolder {
        files: Arc<Mutex<Files>>,
        owner: String,
        calls: Arc<AtomicU64>,
        fates: Arc<Mutex<BTreeMap<u64, Fate>>>,
        hook: Arc<Mutex<Option<Hook>>>,
        dead: CancellationToken,
        broken: Arc<AtomicBool>,
    }

    crate::runtime::opaque_debug!(MemoryLogFolder);

    impl MemoryLogFolder {
        pub(crate) fn new(owner: &str) -> Self {
            Self {
                files: Arc::default(),
                owner: owner.to_owned(),
                calls: Arc::default(),
                fates: Arc::default(),
                hook: Arc::default(),
                dead: CancellationToken::new(),
                broken: Arc::default(),
            }
        }

        /// The same folder for somebody else.
        pub(crate) fn owner_of_the_same(&self, owner: &str) -> Self {
            Self { files: Arc::clone(&self.files), ..Self::new(owner) }
        }

        /// Sets the fate of the call after so many.
        pub(crate) fn plan(&self, after: u64, fate: Fate) {
            self.fates.lock().insert(after, fate);
        }

        /// Has something happen in the call after so many.
        pub(crate) fn interrupt(&self, after: u64, when: When, hook: BoxFuture<'static, ()>) {
            *self.hook.lock() = Some((after, when, hook));
        }

        /// From now on every write to a file that is open fails, as when its DataNodes are gone.
        pub(crate) fn break_open_files(&self) {
            self.files.lock().files.values_mut().for_each(|file| file.writer = None);
        }

        /// From now on nothing can be appended.
        pub(crate) fn break_appends(&self) {
            self.broken.store(true, Ordering::SeqCst);
        }

        pub(crate) fn calls(&self) -> u64 {
            self.calls.load(Ordering::SeqCst)
        }

        /// Resolves when the owner has died: nothing of it goes on then.
        pub(crate) async fn died(&self) {
            self.dead.cancelled().await;
        }

        pub(crate) fn names(&self) -> Vec<String> {
            self.files.lock().files.keys().cloned().collect()
        }

        pub(crate) fn open_names(&self) -> Vec<String> {
            let files = self.files.lock();
            files.files.iter().filter(|(_, file)| file.writer.is_some()).map(|(name, _)| name.clone()).collect()
        }

        /// Empties the folder, as a rebuild does that makes room.
        pub(crate) fn clear(&self) {
            self.files.lock().files.clear();
        }

        fn failed(&self, operation: &'static str, name: &str) -> StoreError {
            StoreError::failed(operation, name, io::Error::other("planned"))
        }

        /// Carries a call out, with what was planned for it. `late` is done instead if it is carried out later, `half` if it
        /// ends in the middle.
        async fn call<T>(
            &self,
            operation: &'static str,
            name: &str,
            whole: impl FnOnce(&mut Files) -> Result<T, StoreError> + Send,
            half: impl FnOnce(&mut Files) + Send,
            late: impl FnOnce(&mut Files) + Send,
        ) -> Result<T, StoreError> {
            if self.dead.is_cancelled() {
                std::future::pending::<()>().await;
            }
            let number = self.calls.fetch_add(1, Ordering::SeqCst);
            self.interrupted(number, When::Before).await;
            let fate = self.fates.lock().remove(&number);
            let done = match fate {
                None => whole(&mut self.files.lock()),
                Some(Fate::AnswerLost | Fate::DiesAfter) => {
                    drop(whole(&mut self.files.lock()));
                    Err(self.failed(operation, name))
                }
                Some(Fate::Torn | Fate::DiesWithin) => {
                    half(&mut self.files.lock());
                    Err(self.failed(operation, name))
                }
                Some(Fate::Late) => {
                    late(&mut self.files.lock());
                    Err(self.failed(operation, name))
                }
                Some(Fate::Fails | Fate::DiesBefore) => Err(self.failed(operation, name)),
            };
            if matches!(fate, Some(Fate::DiesBefore | Fate::DiesAfter | Fate::DiesWithin)) {
                self.dead.cancel();
                std::future::pending::<()>().await;
            }
            self.interrupted(number, When::After).await;
            done
        }

        async fn interrupted(&self, number: u64, now: When) {
            let hook = self.hook.lock().take_if(|(at, when, _)| *at == number && *when == now);
            if let Some((_, _, hook)) = hook {
                hook.await;
            }
        }
    }

    impl Files {
        fn create(&mut self, name: &str) -> Option<u64> {
            if self.files.contains_key(name) {
                return None;
            }
            self.writers += 1;
            let file = MemoryFile { writer: Some(self.writers), ..MemoryFile::default() };
            self.files.insert(name.to_owned(), file);
            Some(self.writers)
        }

        fn release(&mut self, name: &str) -> Option<u64> {
            let file = self.files.get_mut(name)?;
            if file.writer.take().is_some() || !file.late.is_empty() {
                file.bytes.append(&mut file.late);
            }
            Some(file.bytes.len() as u64)
        }

        fn append(&mut self, name: &str, writer: u64, bytes: &[u8], late: bool) -> Option<()> {
            let file = self.files.get_mut(name).filter(|file| file.writer == Some(writer))?;
            if late { &mut file.late } else { &mut file.bytes }.extend_from_slice(bytes);
            Some(())
        }
    }

    fn nothing(_: &mut Files) {}

    #[async_trait]
    impl LogFolder for MemoryLogFolder {
        fn owner(&self) -> &str {
            &self.owner
        }

        fn file_bytes_max(&self) -> Option<u64> {
            None
        }

        async fn list(&self) -> Result<Vec<String>, StoreError> {
            let listed = |files: &mut Files| {
                let names = files.files.keys().cloned().collect();
                let (late, own): (Vec<_>, Vec<_>) = files.late.drain(..).partition(|(owner, _)| *owner != self.owner);
                files.late = own;
                for (_, name) in late {
                    files.create(&name);
                }
                Ok(names)
            };
            self.call("list", "", listed, nothing, nothing).await
        }

        async fn create(&self, name: &str) -> Result<Box<dyn GrowingFile>, StoreError> {
            let late = |files: &mut Files| files.late.push((self.owner.clone(), name.to_owned()));
            let create = |files: &mut Files| files.create(name).ok_or_else(|| self.failed("create", name));
            let writer = self.call("create", name, create, nothing, late).await?;
            Ok(Box::new(MemoryLogFile { folder: self.clone(), name: name.to_owned(), writer, usable: true }))
        }

        async fn release(&self, name: &str) -> Result<Option<u64>, StoreError> {
            self.call("release", name, |files| Ok(files.release(name)), nothing, nothing).await
        }

        async fn read(&self, name: &str) -> Result<Option<VisibleBytes>, StoreError> {
            let read = |files: &mut Files| {
                Ok(files.files.get(name).map(|file| {
                    let bytes = if file.writer.is_some() { Bytes::new() } else { file.bytes.clone().into() };
                    VisibleBytes { bytes, len: file.bytes.len() as u64 }
                }))
            };
            self.call("get", name, read, nothing, nothing).await
        }

        async fn delete(&self, name: &str) -> Result<(), StoreError> {
            let delete = |files: &mut Files| {
                files.files.remove(name);
                Ok(())
            };
            self.call("delete", name, delete, nothing, nothing).await
        }
    }

    #[derive(Debug)]
    struct MemoryLogFile {
        folder: MemoryLogFolder,
        name: String,
        writer: u64,
        usable: bool,
    }

    #[async_trait]
    impl GrowingFile for MemoryLogFile {
        async fn append(&mut self, parts: Vec<Bytes>) -> Result<(), StoreError> {
            let (name, writer, folder) = (&self.name, self.writer, &self.folder);
            if !std::mem::replace(&mut self.usable, false) || folder.broken.load(Ordering::SeqCst) {
                return Err(folder.failed("append", name));
            }
            let bytes = parts.concat();
            let append = |files: &mut Files| {
                files.append(name, writer, &bytes, false).ok_or_else(|| folder.failed("append", name))
            };
            let half = |files: &mut Files| {
                files.append(name, writer, &bytes[..bytes.len() / 2], false);
            };
            let late = |files: &mut Files| {
                files.append(name, writer, &bytes, true);
            };
            folder.call("append", name, append, half, late).await?;
            self.usable = true;
            Ok(())
        }

        async fn append_unsynced(&mut self, parts: Vec<Bytes>) -> Result<(), StoreError> {
            self.append(parts).await
        }

        fn is_usable(&self) -> bool {
            self.usable
        }

        async fn close(&mut self) -> Result<(), StoreError> {
            let name = &self.name;
            self.folder.call("close", name, |files| Ok(files.release(name)), nothing, nothing).await.map(|_| ())
        }
    }
}
