//! A storage as a whole, path by path, for whoever moves files from one to another. No daemon works on it like that.

use std::sync::Arc;

use object_store::local::LocalFileSystem;
use object_store::{Error, ObjectStore};

use super::OpenError;
use super::hdfs::{HdfsClient, HdfsFault, HdfsObjects};
use super::s3::{door, s3};
use crate::config::{StoreSettings, StoreUrl};
use crate::metrics::Metrics;
use crate::runtime::{Clock, Entropy};

/// All files of a local disk or an HDFS, or all objects of a bucket, by their whole paths. Clones share it.
#[derive(Debug, Clone)]
pub struct WholeStore {
    /// Puts are whole or not there at all, and durable when they are answered.
    pub objects: Arc<dyn ObjectStore>,
    /// Whether what a caller says of an object is kept with it.
    pub keeps_attributes: bool,
}

impl WholeStore {
    /// Opens what the URL of `settings` names, its path aside. Nothing is asked of it yet.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(settings: &StoreSettings) -> Result<Self, OpenError> {
        let client = |source| OpenError::Client { url: settings.url.to_string(), source };
        match &settings.url {
            StoreUrl::File(_) => {
                Ok(Self { objects: Arc::new(LocalFileSystem::new().with_fsync(true)), keeps_attributes: false })
            }
            StoreUrl::S3 { bucket, .. } => {
                Ok(Self { objects: Arc::new(s3(bucket, settings).map_err(client)?), keeps_attributes: true })
            }
            StoreUrl::Hdfs { authority, .. } => {
                let id = Entropy::from_os(Clock::System).hex(8);
                let hdfs = HdfsClient::new(authority, "", id, settings, &Metrics::new());
                let failed =
                    |source: HdfsFault| OpenError::Hdfs { url: settings.url.to_string(), source: source.into() };
                Ok(Self { objects: Arc::new(HdfsObjects::new(hdfs.map_err(failed)?)), keeps_attributes: false })
            }
            StoreUrl::Memory | StoreUrl::Gcs { .. } | StoreUrl::Azure { .. } => Err(client(Error::NotImplemented {
                operation: "files one by one".to_owned(),
                implementer: settings.url.to_string(),
            })),
        }
    }

    /// Opens a bucket of a daemon's S3 door, with what `settings` say alone: the environment is about other servers. `ca` are
    /// authorities in PEM besides those that the machine trusts.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_door(settings: &StoreSettings, bucket: &str, ca: Option<&[u8]>) -> Result<Self, OpenError> {
        let opened = door(bucket, settings, ca);
        let opened = opened.map_err(|source| OpenError::Client { url: settings.url.to_string(), source })?;
        Ok(Self { objects: Arc::new(opened), keeps_attributes: true })
    }
}
