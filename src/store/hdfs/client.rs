//! Calls to an HDFS, each counted and each with a deadline.
//!
//! The library waits without end for a DataNode that dies at the wrong moment, so nothing here awaits it bare.
//!
//! It waits for a NameNode that stands still, too, and asks it again with each call, whoever is active by then. So a client of a
//! nameservice with a call that was late is not asked any more: the next one begins with any NameNode of the list. What the
//! client before it has open is given up by whoever writes to it, as after any error.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use hdfs_native::client::FileStatus;
use hdfs_native::file::{FileReader, FileWriter};
use hdfs_native::{Client, ClientBuilder, HdfsError, WriteOptions};
use parking_lot::RwLock;

use crate::config::{HdfsSettings, StoreSettings};
use crate::metrics::Metrics;
use crate::runtime::Clock;

/// The NameNodes of a nameservice are tried in any order; the nameservice follows.
const RANDOM_ORDER: &str = "dfs.client.failover.random.order";
/// With fewer DataNodes than replicas a write goes on with those that are left: it is the NameNode that makes good for them.
const BEST_EFFORT: &str = "dfs.client.block.write.replace-datanode-on-failure.best-effort";
/// Files and folders are for the daemon's user and its group.
const FILE_MODE: u32 = 0o640;
/// How often whoever starts asks a nameservice: any of its NameNodes may stand still.
const FIRST_LOOKS: u32 = 5;
/// First pause between two looks whether a file was closed; doubles up to [`RECOVERY_PAUSE_MAX`].
const RECOVERY_PAUSE: Duration = Duration::from_millis(100);
const RECOVERY_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Why a call did not do what it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HdfsFault {
    /// There was no answer: whether it was carried out is not known.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// There was no place or no memory for what stands in open files.
    #[error("no open file ended within {0:?}, and store.hdfs.open-memory or store.hdfs.max-writers allow no more")]
    NoMemory(Duration),
    /// The lease of its writer is not given back; the NameNode says so.
    #[error("its lease was not recovered within {0:?}")]
    Held(Duration),
    /// The file ends before the bytes that were asked for.
    #[error("the file has {0} bytes")]
    Short(u64),
    /// The answer, or the lack of a connection.
    #[error(transparent)]
    Hdfs(#[from] HdfsError),
}

impl HdfsFault {
    pub(super) fn is_not_found(&self) -> bool {
        match self {
            Self::Hdfs(HdfsError::FileNotFound(_)) => true,
            Self::Hdfs(HdfsError::RPCError(class, _)) => class == "java.io.FileNotFoundException",
            _ => false,
        }
    }

    /// Whether a create or a rename was refused because the name is taken.
    pub(super) fn is_taken(&self) -> bool {
        matches!(self, Self::Hdfs(HdfsError::AlreadyExists(_)))
    }

    /// Whether a folder was not deleted because something is in it.
    pub(super) fn is_not_empty(&self) -> bool {
        let Self::Hdfs(HdfsError::RPCError(class, _)) = self else { return false };
        class.ends_with("PathIsNotEmptyDirectoryException")
    }

    /// Whether a file was not created, or not opened, because it is in an encryption zone: the library tells that by what the
    /// NameNode says of the file, and takes back what it has created.
    pub(super) fn is_encryption_zone(&self) -> bool {
        matches!(self, Self::Hdfs(HdfsError::UnsupportedFeature(what)) if what.contains("encryption zone"))
    }

    /// Whether a repeat changes nothing.
    pub(super) fn is_lasting(&self) -> bool {
        let class = match self {
            Self::Hdfs(HdfsError::RPCError(class, _) | HdfsError::FatalRPCError(class, _)) => class,
            Self::Hdfs(HdfsError::UnsupportedFeature(_) | HdfsError::InvalidArgument(_)) => return true,
            Self::Hdfs(HdfsError::SASLError(_) | HdfsError::NoSASLMechanism) => return true,
            _ => return false,
        };
        let class = class.rsplit('.').next().unwrap_or_default();
        class.contains("AccessControl") || class.contains("QuotaExceeded") || class.contains("InvalidPath")
    }
}

/// The client of the library that is asked, and how many there were before it.
struct ClientTurn {
    client: Client,
    number: u64,
}

/// Makes a client of the library. Of a nameservice, it begins with any of the NameNodes.
type MakeClient = dyn Fn() -> Result<Client, HdfsError> + Send + Sync;

/// The client of one HDFS folder. Clones share it.
#[derive(Clone)]
pub(crate) struct HdfsClient {
    turn: Arc<RwLock<ClientTurn>>,
    /// `None` where there is one NameNode.
    make_next: Option<Arc<MakeClient>>,
    /// Whether there was an answer so far, whatever it was.
    answered: Arc<AtomicBool>,
    /// The folder, absolute.
    root: Arc<str>,
    /// The name of this client in the names of files that it has not finished.
    id: Arc<str>,
    options: WriteOptions,
    timeout: Duration,
    write_timeout: Duration,
    retry_timeout: Duration,
    staged: Arc<AtomicU64>,
    /// Of a block, once that is known.
    block_bytes: Arc<OnceLock<u64>>,
    metrics: Metrics,
}

impl fmt::Debug for HdfsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HdfsClient").field("root", &self.root).finish_non_exhaustive()
    }
}

impl HdfsClient {
    /// A client of the folder `root` of the HDFS `authority`; `id` is its own. Nothing is asked yet.
    ///
    /// # Errors
    /// [`HdfsFault::Hdfs`] if Hadoop's configuration cannot be read, or names no NameNode.
    pub(crate) fn new(
        authority: &str,
        root: &str,
        id: String,
        settings: &StoreSettings,
        metrics: &Metrics,
    ) -> Result<Self, HdfsFault> {
        let hdfs = &settings.hdfs;
        let client = make_client(authority, hdfs, None)?;
        let (nameservice, its_settings) = (authority.to_owned(), hdfs.clone());
        let make_next = move || make_client(&nameservice, &its_settings, Some((RANDOM_ORDER, "true")));
        let make_next: Arc<MakeClient> = Arc::new(make_next);
        let options = WriteOptions {
            block_size: hdfs.block_bytes,
            replication: hdfs.replication,
            permission: FILE_MODE,
            ..WriteOptions::default()
        };
        Ok(Self {
            turn: Arc::new(RwLock::new(ClientTurn { client, number: 0 })),
            answered: Arc::default(),
            make_next: (!authority.contains(':')).then_some(make_next),
            root: root.into(),
            id: id.into(),
            options,
            timeout: settings.request_timeout,
            write_timeout: hdfs.write_timeout,
            retry_timeout: settings.retry_timeout,
            staged: Arc::default(),
            block_bytes: Arc::new(hdfs.block_bytes.map_or_else(OnceLock::new, OnceLock::from)),
            metrics: metrics.clone(),
        })
    }

    /// The folder, absolute.
    pub(super) fn root(&self) -> &str {
        &self.root
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn write_timeout(&self) -> Duration {
        self.write_timeout
    }

    /// For all tries of a call.
    pub(super) fn retry_timeout(&self) -> Duration {
        self.retry_timeout
    }

    /// The size of a block of new files; `None` before a file was looked at.
    pub(super) fn block_bytes(&self) -> Option<u64> {
        self.block_bytes.get().copied()
    }

    /// Remembers the size of a block of a file that was created without a size of one's own.
    pub(super) fn learn_block_bytes(&self, found: Option<u64>) {
        if let Some(bytes) = found {
            self.block_bytes.get_or_init(|| bytes);
        }
    }

    /// The absolute path of a name below the folder.
    pub(super) fn at(&self, name: &str) -> String {
        if name.is_empty() { self.root.to_string() } else { format!("{}/{name}", self.root) }
    }

    /// A number for the name of a file that this client alone writes.
    pub(super) fn next_staged(&self) -> u64 {
        self.staged.fetch_add(1, Ordering::Relaxed)
    }

    /// Counts calls to the NameNode that are made beside those here: for each synced group one, for each block one.
    pub(super) fn count(&self, calls: u64) {
        self.metrics.hdfs_calls.inc_by(calls);
    }

    async fn call<T, F>(&self, calls: u64, request: impl FnOnce(Client) -> F + Send) -> Result<T, HdfsFault>
    where
        F: Future<Output = Result<T, HdfsError>> + Send,
    {
        self.count(calls);
        let (client, number) = self.client();
        let answer = within(self.timeout, request(client)).await;
        match answer {
            Err(HdfsFault::Late(_)) => self.turn_from(number),
            _ => self.answered.store(true, Ordering::Relaxed),
        }
        answer
    }

    /// The client that is asked now, and its number.
    fn client(&self) -> (Client, u64) {
        let turn = self.turn.read();
        (turn.client.clone(), turn.number)
    }

    /// Asks another client than this one from now on, if the NameNode that it waits for may not be the active one.
    fn turn_from(&self, number: u64) {
        let Some(make_next) = &self.make_next else { return };
        // The first of many calls that were late at once does it for all.
        if self.turn.read().number != number {
            return;
        }
        match make_next() {
            Ok(client) => {
                let mut turn = self.turn.write();
                if turn.number == number {
                    tracing::info!(root = %self.root, "a NameNode does not answer, others are asked");
                    *turn = ClientTurn { client, number: number + 1 };
                }
            }
            Err(error) => tracing::warn!(%error, "a NameNode does not answer, and others cannot be asked"),
        }
    }

    /// What is under a path.
    pub(super) async fn info(&self, path: &str) -> Result<FileStatus, HdfsFault> {
        for _ in 1..FIRST_LOOKS {
            let answer = self.look(path).await;
            // Whoever starts asks this first, and there is nobody yet who would ask again.
            let waits = matches!(answer, Err(HdfsFault::Late(_))) && self.make_next.is_some();
            if !waits || self.answered.load(Ordering::Relaxed) {
                return answer;
            }
        }
        self.look(path).await
    }

    async fn look(&self, path: &str) -> Result<FileStatus, HdfsFault> {
        self.call(1, |client| async move { client.get_file_info(path).await }).await
    }

    /// Creates a file, and the folders above it. Fails if the name is taken.
    pub(super) async fn create(&self, path: &str) -> Result<FileWriter, HdfsFault> {
        self.call(1, |client| async move { client.create(path, &self.options).await }).await
    }

    /// Opens a closed file to write behind its end.
    pub(super) async fn append(&self, path: &str) -> Result<FileWriter, HdfsFault> {
        self.call(2, |client| async move { client.append(path).await }).await
    }

    /// Renames a file. Atomic; without `overwrite` it fails if the name is taken.
    pub(super) async fn rename(&self, from: &str, to: &str, overwrite: bool) -> Result<(), HdfsFault> {
        self.call(1, |client| async move { client.rename(from, to, overwrite).await }).await
    }

    /// Deletes a file, or an empty folder. False if nothing was there.
    pub(super) async fn delete(&self, path: &str) -> Result<bool, HdfsFault> {
        self.call(1, |client| async move { client.delete(path, false).await }).await
    }

    pub(super) async fn make_folder(&self, path: &str) -> Result<(), HdfsFault> {
        self.call(1, |client| async move { client.mkdirs(path, FILE_MODE | 0o110, true).await }).await
    }

    /// Opens a file to be read: where its blocks are is asked once, here.
    pub(super) async fn open(&self, path: &str) -> Result<FileReader, HdfsFault> {
        self.call(1, |client| async move { client.read(path).await }).await
    }

    /// Reads so many bytes of an opened file.
    pub(super) async fn read(&self, file: &FileReader, offset: u64, len: u64) -> Result<Bytes, HdfsFault> {
        // The library panics beyond the end.
        let there = file.file_length() as u64;
        if offset + len > there {
            return Err(HdfsFault::Short(there));
        }
        let in_memory = |bytes: u64| usize::try_from(bytes).map_err(|_| HdfsError::InvalidArgument("too long".into()));
        let (offset, len) = (in_memory(offset)?, in_memory(len)?);
        let read = within(self.timeout, file.read_range(offset, len)).await?;
        // Of a file that is open for writing the library reads nothing of the last block, and says nothing.
        if read.len() < len { Err(HdfsFault::Short(offset as u64 + read.len() as u64)) } else { Ok(read) }
    }

    /// What is in a folder, and with `recursive` in those below it. Empty if there is none. A call for each folder and
    /// thousand names.
    pub(super) async fn list(&self, path: &str, recursive: bool) -> Result<Vec<FileStatus>, HdfsFault> {
        let (client, number) = self.client();
        let listing = client.list_status_iter(path, recursive);
        let (mut found, mut folders) = (vec![], 1);
        self.count(1);
        loop {
            match within(self.timeout, async { listing.next().await.transpose() }).await {
                Ok(Some(status)) => {
                    folders += u64::from(status.isdir);
                    found.push(status);
                }
                Ok(None) => break,
                // A folder that went away meanwhile.
                Err(error) if error.is_not_found() => {}
                Err(error) => {
                    if matches!(error, HdfsFault::Late(_)) {
                        self.turn_from(number);
                    }
                    return Err(error);
                }
            }
        }
        if recursive {
            self.count(folders - 1);
        }
        Ok(found)
    }

    /// Takes a file from whoever writes it, and returns its length: nothing is added to it from here on. Takes about a second
    /// if somebody had it, longer if DataNodes are missing; asks until `patience` is over.
    pub(super) async fn close_for(&self, path: &str, patience: Duration) -> Result<u64, HdfsFault> {
        let begun = Clock::instant();
        let mut pause = RECOVERY_PAUSE;
        loop {
            let error = match self.call(1, |client| async move { client.recover_lease(path).await }).await {
                Ok(true) => return Ok(self.info(path).await?.length as u64),
                Ok(false) => HdfsFault::Held(patience),
                Err(error) if error.is_not_found() || error.is_lasting() => return Err(error),
                Err(error) => error,
            };
            if begun.elapsed() + pause > patience {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RECOVERY_PAUSE_MAX);
        }
    }
}

/// The library's client of a NameNode or a nameservice; `more` is a key for the nameservice.
fn make_client(
    authority: &str,
    hdfs: &HdfsSettings,
    more: Option<(&'static str, &'static str)>,
) -> Result<Client, HdfsError> {
    let more = more.map(|(key, value)| (format!("{key}.{authority}"), value.to_owned()));
    let conf = [(BEST_EFFORT.to_owned(), "true".to_owned())].into_iter().chain(hdfs.conf.iter().cloned()).chain(more);
    let mut builder = ClientBuilder::new().with_url(format!("hdfs://{authority}")).with_config(conf);
    if let Some(folder) = &hdfs.conf_dir {
        builder = builder.with_config_dir(folder.display().to_string());
    }
    if let Some(user) = &hdfs.user {
        builder = builder.with_user(user.clone());
    }
    builder.build()
}

/// Waits for a call, but not for ever. A call that is late is dropped, and with it what it had begun.
pub(super) async fn within<T>(
    patience: Duration,
    request: impl Future<Output = Result<T, HdfsError>> + Send,
) -> Result<T, HdfsFault> {
    // On the heap: the library's futures are nested deeper than the compiler likes to look into.
    match tokio::time::timeout(patience, request.boxed()).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(HdfsFault::Late(patience)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[tokio::test]
    async fn a_nameservice_is_known_from_the_keys_alone() {
        let conf = [
            "dfs.nameservices=ns",
            "dfs.ha.namenodes.ns=a,b",
            "dfs.namenode.rpc-address.ns.a=127.0.0.1:1",
            "dfs.namenode.rpc-address.ns.b=127.0.0.1:2",
        ];
        let settings = Config::load_with(None, [], &[]).unwrap().settings().unwrap().store;
        let client = |conf: &[&str]| {
            let pair = |entry: &&str| entry.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
            let mut settings = settings.clone();
            settings.hdfs.conf = conf.iter().filter_map(pair).collect();
            HdfsClient::new("ns", "/esker", "1".to_owned(), &settings, &Metrics::new())
        };

        assert!(client(&conf).is_ok());
        assert!(client(&[]).is_err());
    }
}
