//! A storage as a whole, path by path, for whoever moves files from one to another. No daemon works on it like that.
//!
//! Nothing is replaced that is there. A file that comes in parts ([`NewFile`]) is refused if something has its name by the time
//! it is completed: S3 and Azure decide that with the completion, HDFS and a disk with the name that it gets. On Google Cloud
//! Storage, and on servers of S3's protocol that do not know the condition, it is looked for just before.
//!
//! # Crash
//! Parts stay with a service until somebody aborts their upload. On a disk and on HDFS a hidden file stays.

use std::path::Path as FilePath;
use std::sync::Arc;

use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, Error, MultipartUpload, ObjectStore, ObjectStoreExt, PutMultipartOptions, RenameOptions,
    RenameTargetMode, Result,
};

use super::OpenError;
use super::hdfs::HdfsObjects;
use super::open::{ServiceClient, hdfs_client, service_client};
use super::regular::irregular;
use super::s3::door;
use super::service::UploadCompletion;
use crate::config::{StoreSettings, StoreUrl};
use crate::metrics::Metrics;
use crate::runtime::{Clock, Entropy};

/// What an object was copied from, as the object says.
const SOURCE: &str = "esker-source";
/// The same where a name is one of a variable.
const SOURCE_IN_AZURE: &str = "esker_source";

/// All files of a local disk or an HDFS, or all objects of a bucket, by their whole paths. Clones share it.
#[derive(Debug, Clone)]
pub struct WholeStore {
    /// Puts are whole or not there at all, and durable when they are answered.
    pub objects: Arc<dyn ObjectStore>,
    /// What a caller may say of an object's source, where that is kept with the object.
    pub source_note: Option<Attribute>,
    parts: PartsPlace,
}

/// How a file that comes in parts gets its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PartsPlace {
    /// It is written under a hidden name on this machine's disk, and linked to its own.
    Disk,
    /// It is there when it is completed, and until then nothing is. `aborts`: its parts can be given up.
    Store { aborts: bool },
}

/// A file that comes in parts, and is there once it is complete.
#[derive(Debug)]
pub struct NewFile {
    store: WholeStore,
    path: Path,
    /// The name under which it is written, if that is not its own.
    hidden: Option<Path>,
    upload: Box<dyn MultipartUpload>,
}

impl WholeStore {
    /// Opens what the URL of `settings` names, its path aside. Nothing is asked of it yet.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(settings: &StoreSettings) -> std::result::Result<Self, OpenError> {
        match &settings.url {
            StoreUrl::File(_) => {
                let objects = Arc::new(LocalFileSystem::new().with_fsync(true));
                Ok(Self { objects, source_note: None, parts: PartsPlace::Disk })
            }
            StoreUrl::Hdfs { authority, .. } => {
                let entropy = Entropy::from_os(Clock::System);
                let hdfs = hdfs_client((authority, ""), settings, &Metrics::new(), &entropy)?;
                Ok(Self::unnoted(Arc::new(HdfsObjects::new(hdfs).creating())))
            }
            url => {
                let ServiceClient { objects, can, .. } = service_client(url, settings, UploadCompletion::Creates)?;
                let note = if url.is_azure() { SOURCE_IN_AZURE } else { SOURCE };
                let parts = PartsPlace::Store { aborts: can.aborts_uploads };
                Ok(Self { objects, source_note: Some(Attribute::Metadata(note.into())), parts })
            }
        }
    }

    /// Opens a bucket of a daemon's S3 door, with what `settings` say alone: the environment is about other servers. `ca` are
    /// authorities in PEM besides those that the machine trusts.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_door(
        settings: &StoreSettings,
        bucket: &str,
        ca: Option<&[u8]>,
    ) -> std::result::Result<Self, OpenError> {
        let opened = door(bucket, settings, ca);
        let opened = opened.map_err(|source| OpenError::Client { url: settings.url.to_string(), source })?;
        Ok(Self::noted(Arc::new(opened)))
    }

    /// A store that keeps what is said of an object.
    pub(crate) fn noted(objects: Arc<dyn ObjectStore>) -> Self {
        Self { source_note: Some(Attribute::Metadata(SOURCE.into())), ..Self::unnoted(objects) }
    }

    /// A store that does not.
    pub(crate) fn unnoted(objects: Arc<dyn ObjectStore>) -> Self {
        Self { objects, source_note: None, parts: PartsPlace::Store { aborts: true } }
    }

    /// What is in the place of a file, if it is something that would be waited for when it is read, or a folder. Nothing is
    /// opened.
    pub fn irregular(&self, path: &Path) -> Option<&'static str> {
        match self.parts {
            PartsPlace::Disk => irregular(&FilePath::new("/").join(path.as_ref())),
            PartsPlace::Store { .. } => None,
        }
    }

    /// Begins a file that comes in parts.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn begin(&self, path: &Path, attributes: Attributes) -> Result<NewFile> {
        let hidden = match self.parts {
            PartsPlace::Disk => Some(hidden_beside(path)),
            PartsPlace::Store { .. } => None,
        };
        let options = PutMultipartOptions { attributes, ..PutMultipartOptions::default() };
        let upload = self.objects.put_multipart_opts(hidden.as_ref().unwrap_or(path), options).await?;
        Ok(NewFile { store: self.clone(), path: path.clone(), hidden, upload })
    }
}

/// `.<name>.<random>.tmp` in the same folder.
fn hidden_beside(path: &Path) -> Path {
    let name_at = path.as_ref().rfind('/').map_or(0, |slash| slash + 1);
    let (folder, name) = path.as_ref().split_at(name_at);
    let hidden = format!("{folder}.{name}.{}.tmp", Entropy::from_os(Clock::System).hex(8));
    Path::parse(hidden).expect("it has the characters of a path, and no part that is empty or dots alone")
}

impl NewFile {
    /// Writes the next part, and waits for it.
    ///
    /// # Errors
    /// Those of the store; [`Self::abort`] it then.
    pub async fn put_part(&mut self, bytes: bytes::Bytes) -> Result<()> {
        self.upload.put_part(bytes.into()).await
    }

    /// All parts are there: it gets its name, unless that is taken.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] or [`Error::Precondition`] if it is, as far as that is known; others of the store, and then
    /// nobody knows whether it is there. [`Self::abort`] it in either case.
    pub async fn complete(&mut self) -> Result<()> {
        let Some(hidden) = &self.hidden else {
            if self.store.objects.head(&self.path).await.is_ok() {
                let source = "it appeared while its parts were written".into();
                return Err(Error::AlreadyExists { path: self.path.to_string(), source });
            }
            return self.upload.complete().await.map(|_| ());
        };
        self.upload.complete().await?;
        let create = RenameOptions::new().with_target_mode(RenameTargetMode::Create);
        self.store.objects.rename_opts(hidden, &self.path, create).await
    }

    /// Gives up what is not complete. Returns whether nothing is left of it.
    pub async fn abort(mut self) -> bool {
        let aborted = self.upload.abort().await;
        let aborted = match &self.hidden {
            // Where it was completed the file is there by then, and an abort says no more than that.
            Some(hidden) => self.store.objects.delete(hidden).await,
            None => aborted,
        };
        match aborted {
            Ok(()) | Err(Error::NotFound { .. }) => {
                matches!(self.store.parts, PartsPlace::Disk | PartsPlace::Store { aborts: true })
            }
            Err(error) => {
                tracing::debug!(file = %self.path, error = crate::error::chain(&error), "an upload cannot be given up");
                false
            }
        }
    }
}
