//! Makes a store of a URL, and tries it.

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use futures::{FutureExt, StreamExt};
use object_store::aws::AmazonS3;
use object_store::gcp::GoogleCloudStorage;
use object_store::limit::LimitStore;
use object_store::memory::InMemory;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{Error, ObjectStore};

use super::azure::{AzureObjects, CONNECTION_STRING, azure};
use super::gcs::gcs;
use super::hdfs::{HdfsClient, HdfsFault, HdfsLogFolder, HdfsObjects, HdfsProbeError, HdfsStore, probe_hdfs};
use super::regular::{NotRegular, check_catalog_folder, check_data_folder};
use super::s3::s3;
use super::service::UploadCompletion;
use super::{
    Capabilities, CountedStore, DataStore, DiskSpace, LocalCopy, LocalStore, Multipart, ObjectFiles, Placement,
    ProbeError, Traffic, probe,
};
use crate::config::{GivenObjects, StoreSettings, StoreUrl};
use crate::metrics::Metrics;
use crate::model::{PhysicalFileId, ShardOf};
use crate::runtime::{Clock, Entropy};

/// A store that was tried, and the catalog's place beside it.
#[derive(Debug, Clone)]
pub struct OpenedStore {
    /// Where physical files go.
    pub data: DataStore,
    /// Where the catalog goes.
    pub catalog: Placement,
    /// The room on the local disks of both.
    pub space: DiskSpace,
}

impl OpenedStore {
    /// The place of one shard: the same client, and names below the shard's folder. `settings` are the shard's, and say whether it has
    /// a local copy.
    pub async fn of_shard(&self, shard: ShardOf, settings: &StoreSettings, metrics: &Metrics) -> Self {
        let (Some(folders), DataStore::Object(files)) = (shard.folder(), &self.data) else { return self.clone() };
        let copy = local_copy(settings, metrics).await;
        let data = DataStore::Object(files.below(&folders).with_copy(copy));
        Self { data, catalog: self.catalog.below(&folders), space: self.space.clone() }
    }
}

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be made.
    #[error("the folder {} cannot be used", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The operating system's error.
        #[source]
        source: std::io::Error,
    },
    /// A file is none.
    #[error(transparent)]
    NotRegular(#[from] NotRegular),
    /// Direct writes are demanded and do not work.
    #[error("{} takes no direct writes: set store.direct-io to auto or off", folder.display())]
    Direct {
        /// The folder.
        folder: PathBuf,
        /// The operating system's error.
        #[source]
        source: std::io::Error,
    },
    /// The configuration does not make a client.
    #[error("the client for {url} cannot be made")]
    Client {
        /// The store.
        url: String,
        /// The fault in the URL or its options.
        #[source]
        source: Error,
    },
    /// The key of a service account does not make a client.
    #[error("{} does not make a client: correct store.gcs.service-account", file.display())]
    ServiceAccount {
        /// The file with the key.
        file: PathBuf,
        /// The fault in it.
        #[source]
        source: Error,
    },
    /// The URL names a container alone, and nobody its account.
    #[error(
        "{0} does not say whose container it is: set store.azure.account or AZURE_STORAGE_ACCOUNT_NAME, or write \
         `abfss://container@account.dfs.core.windows.net/prefix` ({CONNECTION_STRING} is not read: put its AccountName and \
         AccountKey there)"
    )]
    NoAccount(String),
    /// There is no client for an HDFS.
    #[error(
        "there is no client for {url}: write `hdfs://host:port/folder`, or name the folder with core-site.xml and hdfs-site.xml \
         in store.hdfs.conf-dir, or give their keys in store.hdfs.conf"
    )]
    Hdfs {
        /// The store.
        url: String,
        /// The fault in the URL or in Hadoop's configuration.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A folder of an HDFS failed the probe.
    #[error("the store {url} cannot be used")]
    HdfsProbe {
        /// The store.
        url: String,
        /// Its misbehaviour.
        #[source]
        source: HdfsProbeError,
    },
    /// The store failed the probe.
    #[error("the store {url} cannot be used")]
    Probe {
        /// The store.
        url: String,
        /// The store's misbehaviour.
        #[source]
        source: ProbeError,
    },
}

impl OpenError {
    /// Whether it is the configuration that makes no client, or a file is none: trying again changes nothing.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::ServiceAccount { .. } | Self::NoAccount(_) | Self::NotRegular(_))
    }
}

/// Opens the store of `settings` and probes it. The catalog goes to `catalog_url`, or beside the data.
///
/// # Errors
/// [`OpenError`]; the daemon must not start on such a store.
pub async fn open(
    settings: &StoreSettings,
    catalog_url: Option<&StoreUrl>,
    metrics: &Metrics,
    entropy: &Entropy,
) -> Result<OpenedStore, OpenError> {
    let place = StoreRoot::make(&settings.url, settings, metrics, entropy)?;
    let catalog_place = match catalog_url {
        Some(url) if *url != settings.url => Some((url, StoreRoot::make(url, settings, metrics, entropy)?)),
        _ => None,
    };
    let catalog_folder = catalog_place.as_ref().map_or(&place, |(_, place)| place).folder().map(catalog_in);
    let space = disk_space(place.folder(), catalog_folder.as_deref(), settings, metrics)?;
    let data = match &place {
        StoreRoot::Folder(folder) => {
            let store = LocalStore::new(folder.clone(), Traffic::data(metrics.clone())).with_space(space.clone());
            let store = store.with_direct_io(settings.direct_io, &entropy.hex(8));
            DataStore::Local(store.map_err(|source| OpenError::Direct { folder: folder.clone(), source })?)
        }
        StoreRoot::Bucket(bucket) => {
            let copy = local_copy(settings, metrics).await;
            DataStore::Object(bucket.files(settings, Traffic::data(metrics.clone())).with_copy(copy))
        }
        StoreRoot::Hdfs(hdfs) => {
            try_hdfs(hdfs, &settings.url, entropy).boxed().await?;
            DataStore::Hdfs(hdfs_store(hdfs.clone(), settings, Traffic::data(metrics.clone())))
        }
    };
    let (url, place) = catalog_place.unwrap_or((&settings.url, place));
    let catalog = match place {
        StoreRoot::Folder(folder) => Placement::Local {
            folder: catalog_in(&folder),
            traffic: Traffic::catalog(metrics.clone()),
            space: space.clone(),
        },
        StoreRoot::Bucket(bucket) => {
            let folder = bucket.prefix.clone().join("probe");
            let counted = bucket.counted(Traffic::catalog(metrics.clone()));
            let probed = probe(&counted, &folder, &entropy.hex(16), bucket.can).await;
            probed.map_err(|source| OpenError::Probe { url: url.to_string(), source })?;
            bucket.catalog(Traffic::catalog(metrics.clone()))
        }
        StoreRoot::Hdfs(hdfs) => {
            let placement = hdfs_catalog(hdfs.clone(), settings, Traffic::catalog(metrics.clone()));
            if *url != settings.url {
                try_hdfs(&hdfs, url, entropy).boxed().await?;
            }
            placement
        }
    };
    tracing::debug!(url = %settings.url, capabilities = ?data.capabilities(), "the store is open");
    Ok(OpenedStore { data, catalog, space })
}

async fn try_hdfs(hdfs: &HdfsClient, url: &StoreUrl, entropy: &Entropy) -> Result<(), OpenError> {
    let probed = probe_hdfs(hdfs, "probe", &entropy.hex(16)).await;
    probed.map_err(|source| OpenError::HdfsProbe { url: url.to_string(), source })
}

/// The folder as an object store, with so many requests at a time, which are counted.
fn hdfs_objects(hdfs: HdfsClient, settings: &StoreSettings, traffic: Traffic) -> Arc<dyn ObjectStore> {
    let limited = LimitStore::new(HdfsObjects::new(hdfs), settings.concurrent_requests_max);
    Arc::new(CountedStore::new(Arc::new(limited), traffic))
}

fn hdfs_store(hdfs: HdfsClient, settings: &StoreSettings, traffic: Traffic) -> HdfsStore {
    let objects = hdfs_objects(hdfs.clone(), settings, traffic.clone());
    HdfsStore::new(hdfs, objects, &settings.hdfs, traffic)
}

fn hdfs_catalog(hdfs: HdfsClient, settings: &StoreSettings, traffic: Traffic) -> Placement {
    let log = HdfsLogFolder::new(hdfs.clone(), "catalog/log".to_owned(), traffic.clone());
    let store = hdfs_objects(hdfs, settings, traffic);
    Placement::Object { store, prefix: Path::from("catalog"), can: Capabilities::HDFS, log: Some(Arc::new(log)) }
}

fn catalog_in(folder: impl AsRef<FilePath>) -> PathBuf {
    folder.as_ref().join("catalog")
}

fn disk_space(
    data: Option<&PathBuf>,
    catalog: Option<&FilePath>,
    settings: &StoreSettings,
    metrics: &Metrics,
) -> Result<DiskSpace, OpenError> {
    DiskSpace::open(data.map(PathBuf::as_path), catalog, settings.reserve_bytes, metrics).map_err(|source| {
        let folder = data.map(PathBuf::as_path).or(catalog).unwrap_or(FilePath::new("."));
        OpenError::Folder { folder: folder.to_owned(), source }
    })
}

/// Checks what can be checked of `settings` without asking the object storage services that they name, and returns what an
/// operator should know.
///
/// # Errors
/// [`OpenError`] if there is no client for one of them.
pub fn check_services(
    settings: &StoreSettings,
    catalog_url: Option<&StoreUrl>,
    metrics: &Metrics,
) -> Result<Vec<String>, OpenError> {
    let mut warnings = vec![];
    for url in services(settings, catalog_url) {
        StoreRoot::make(url, settings, metrics, &Entropy::from_os(Clock::System))?;
        warnings.extend(credentials_hint(url, settings).map(|hint| format!("{url}: {hint}")));
    }
    Ok(warnings)
}

/// Tells where credentials are missing, if neither settings nor environment name any for the service of `url`.
pub fn credentials_hint(url: &StoreUrl, settings: &StoreSettings) -> Option<&'static str> {
    match url {
        StoreUrl::S3 { .. } if !super::s3::names_credentials(settings) => Some(
            "no credentials were found, so the metadata service of the machine is asked for them. Set store.access-key and \
             store.secret-key, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; files in ~/.aws are not read",
        ),
        StoreUrl::Gcs { .. } if !super::gcs::names_credentials(settings) => Some(
            "no credentials were found, so the metadata server of the machine is asked for them. Set \
             store.gcs.service-account or GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`",
        ),
        StoreUrl::Azure { .. } if !super::azure::names_credentials(settings) => Some(
            "no credentials were found, so the managed identity of the machine is asked for. Set store.azure.account-key or \
             AZURE_STORAGE_ACCOUNT_KEY, or the variables of a service principal, a workload identity or a signature \
             (AZURE_STORAGE_CONNECTION_STRING is not read)",
        ),
        _ => None,
    }
}

/// Tells which bucket or container of `settings` is not there; `None` if all are, or do not answer.
pub async fn missing_bucket(
    settings: &StoreSettings,
    catalog_url: Option<&StoreUrl>,
    metrics: &Metrics,
) -> Option<OpenError> {
    for url in services(settings, catalog_url) {
        let made = StoreRoot::make(url, settings, metrics, &Entropy::from_os(Clock::System));
        let Ok(StoreRoot::Bucket(bucket)) = made else { continue };
        let place = bucket.counted(Traffic::catalog(metrics.clone()));
        if let Some(Err(source)) = place.list(Some(&bucket.prefix)).next().await
            && is_missing(&source)
        {
            return Some(OpenError::Probe { url: url.to_string(), source: ProbeError::NoBucket(source) });
        }
    }
    None
}

/// Whether a list failed because what it is of is missing: nothing else of a list can be. `object_store` says so of objects
/// alone, and has a text for the others.
fn is_missing(error: &Error) -> bool {
    matches!(error, Error::NotFound { .. }) || crate::error::chain(error).contains("404 Not Found")
}

fn services<'a>(
    settings: &'a StoreSettings,
    catalog_url: Option<&'a StoreUrl>,
) -> impl Iterator<Item = &'a StoreUrl> + Send {
    let catalog_url = catalog_url.filter(|url| **url != settings.url);
    std::iter::once(&settings.url).chain(catalog_url).filter(|url| url.is_service())
}

/// The data of a store, for looking at it: nothing is tried, made or kept beside it.
///
/// # Errors
/// [`OpenError::Client`].
pub fn open_data(settings: &StoreSettings, metrics: &Metrics) -> Result<DataStore, OpenError> {
    let traffic = Traffic::data(metrics.clone());
    if let StoreUrl::File(folder) = &settings.url {
        let absolute = std::path::absolute(folder);
        let folder = absolute.map_err(|source| OpenError::Folder { folder: folder.clone(), source })?;
        check_data_folder(&folder)?;
        return Ok(DataStore::Local(LocalStore::new(folder, traffic)));
    }
    match StoreRoot::make(&settings.url, settings, metrics, &Entropy::from_os(Clock::System))? {
        StoreRoot::Folder(folder) => Ok(DataStore::Local(LocalStore::new(folder, traffic))),
        StoreRoot::Bucket(bucket) => Ok(DataStore::Object(bucket.files(settings, traffic))),
        StoreRoot::Hdfs(hdfs) => Ok(DataStore::Hdfs(hdfs_store(hdfs, settings, traffic))),
    }
}

/// The catalog's place, for looking at it: nothing is tried or made.
///
/// # Errors
/// [`OpenError::Client`].
pub fn place_of_catalog(
    settings: &StoreSettings,
    catalog_url: Option<&StoreUrl>,
    metrics: &Metrics,
) -> Result<Placement, OpenError> {
    let traffic = Traffic::catalog(metrics.clone());
    let url = catalog_url.unwrap_or(&settings.url);
    if let StoreUrl::File(folder) = url {
        let absolute = std::path::absolute(folder);
        let folder = absolute.map_err(|source| OpenError::Folder { folder: folder.clone(), source })?;
        return local_catalog(&folder, traffic, settings, metrics);
    }
    Ok(match StoreRoot::make(url, settings, metrics, &Entropy::from_os(Clock::System))? {
        StoreRoot::Hdfs(hdfs) => hdfs_catalog(hdfs, settings, traffic),
        StoreRoot::Folder(folder) => return local_catalog(&folder, traffic, settings, metrics),
        StoreRoot::Bucket(bucket) => bucket.catalog(traffic),
    })
}

/// A look has to write as well, and may need what is kept back for that.
fn local_catalog(
    folder: &FilePath,
    traffic: Traffic,
    settings: &StoreSettings,
    metrics: &Metrics,
) -> Result<Placement, OpenError> {
    let folder = catalog_in(folder);
    check_catalog_folder(&folder)?;
    let space =
        if folder.exists() { disk_space(None, Some(&folder), settings, metrics)? } else { DiskSpace::default() };
    Ok(Placement::Local { folder, traffic, space })
}

#[expect(clippy::disallowed_methods, reason = "awaited at once, and without it there is no local copy")]
async fn local_copy(settings: &StoreSettings, metrics: &Metrics) -> Option<LocalCopy> {
    let copy = settings.local_copy.clone()?;
    let store = format!("{} {}", settings.url, settings.endpoint.as_deref().unwrap_or_default());
    let metrics = metrics.clone();
    tokio::task::spawn_blocking(move || LocalCopy::open(&copy, &store, &metrics)).await.ok().flatten()
}

/// The place that a URL names.
enum StoreRoot {
    Folder(PathBuf),
    Bucket(Bucket),
    Hdfs(HdfsClient),
}

/// A part of an object store, which is asked no more than a number of things at a time.
struct Bucket {
    store: Arc<dyn ObjectStore>,
    multipart: Arc<dyn MultipartStore>,
    /// The start of all names.
    prefix: Path,
    can: Capabilities,
}

impl Bucket {
    fn counted(&self, traffic: Traffic) -> CountedStore {
        CountedStore::new(Arc::clone(&self.store), traffic)
    }

    fn files(&self, settings: &StoreSettings, traffic: Traffic) -> ObjectFiles {
        let multipart = Multipart::new(Arc::clone(&self.multipart), settings.concurrent_requests_max, traffic.clone());
        ObjectFiles::new(Arc::new(self.counted(traffic)), multipart, self.prefix.clone(), self.can, settings)
    }

    fn catalog(&self, traffic: Traffic) -> Placement {
        let store = Arc::new(self.counted(traffic));
        Placement::Object { store, prefix: self.prefix.clone().join("catalog"), can: self.can, log: None }
    }

    fn limited(
        store: Arc<dyn ObjectStore>,
        multipart: Arc<dyn MultipartStore>,
        prefix: &str,
        can: Capabilities,
        settings: &StoreSettings,
    ) -> Self {
        let limited = LimitStore::new(store, settings.concurrent_requests_max);
        Self { store: Arc::new(limited), multipart, prefix: Path::from(prefix), can }
    }
}

impl StoreRoot {
    fn folder(&self) -> Option<&PathBuf> {
        match self {
            Self::Folder(folder) => Some(folder),
            Self::Bucket(_) | Self::Hdfs(_) => None,
        }
    }

    fn make(url: &StoreUrl, settings: &StoreSettings, metrics: &Metrics, entropy: &Entropy) -> Result<Self, OpenError> {
        match url {
            StoreUrl::File(folder) => {
                let made = std::fs::create_dir_all(folder.join(PhysicalFileId::FOLDER))
                    .and_then(|()| std::path::absolute(folder));
                let folder = made.map_err(|source| OpenError::Folder { folder: folder.clone(), source })?;
                Ok(Self::Folder(folder))
            }
            StoreUrl::Memory => {
                let store = Arc::new(InMemory::new());
                let (multipart, prefix, can) = (Arc::<InMemory>::clone(&store), Path::default(), Capabilities::OBJECT);
                Ok(Self::Bucket(Bucket { store, multipart, prefix, can }))
            }
            StoreUrl::Hdfs { authority, path } => {
                Ok(Self::Hdfs(hdfs_client((authority, path), settings, metrics, entropy)?))
            }
            StoreUrl::S3 { prefix, .. } | StoreUrl::Gcs { prefix, .. } | StoreUrl::Azure { prefix, .. } => {
                let ServiceClient { objects, multipart, can } =
                    service_client(url, settings, UploadCompletion::Replaces)?;
                Ok(Self::Bucket(Bucket::limited(objects, multipart, prefix, can, settings)))
            }
        }
    }
}

/// A client of an object storage service.
pub(super) struct ServiceClient {
    pub(super) objects: Arc<dyn ObjectStore>,
    pub(super) multipart: Arc<dyn MultipartStore>,
    pub(super) can: Capabilities,
}

/// Makes the client of the service that `url` names.
///
/// # Errors
/// [`OpenError`], also if it names none.
pub(super) fn service_client(
    url: &StoreUrl,
    settings: &StoreSettings,
    completion: UploadCompletion,
) -> Result<ServiceClient, OpenError> {
    let client = |source| OpenError::Client { url: url.to_string(), source };
    if let Some(GivenObjects { objects, multipart }) = settings.given.clone() {
        return Ok(ServiceClient { objects, multipart, can: Capabilities::OBJECT });
    }
    match url {
        StoreUrl::S3 { bucket, .. } => {
            let store = Arc::new(s3(bucket, settings, completion).map_err(client)?);
            Ok(ServiceClient { objects: Arc::<AmazonS3>::clone(&store), multipart: store, can: Capabilities::OBJECT })
        }
        StoreUrl::Gcs { bucket, .. } => {
            let failed = |source| match settings.gcs_service_account.clone() {
                Some(file) => OpenError::ServiceAccount { file, source },
                None => client(source),
            };
            let store = Arc::new(gcs(bucket, settings).map_err(failed)?);
            let objects = Arc::<GoogleCloudStorage>::clone(&store);
            Ok(ServiceClient { objects, multipart: store, can: Capabilities::GCS })
        }
        StoreUrl::Azure { host, container, .. } => {
            let store = azure(host.as_deref(), container, settings, completion).map_err(client)?;
            let store = store.ok_or_else(|| OpenError::NoAccount(url.to_string()))?;
            let objects = AzureObjects::shared(store.clone());
            Ok(ServiceClient { objects, multipart: Arc::new(store), can: Capabilities::AZURE })
        }
        StoreUrl::File(_) | StoreUrl::Memory | StoreUrl::Hdfs { .. } => Err(client(Error::NotImplemented {
            operation: "objects of a service".to_owned(),
            implementer: url.to_string(),
        })),
    }
}

/// Makes the client of a folder of an HDFS: `authority` and path.
///
/// # Errors
/// [`OpenError::Hdfs`].
pub(super) fn hdfs_client(
    (authority, path): (&str, &str),
    settings: &StoreSettings,
    metrics: &Metrics,
    entropy: &Entropy,
) -> Result<HdfsClient, OpenError> {
    let client = HdfsClient::new(authority, path, entropy.hex(8), settings, metrics);
    client.map_err(|source: HdfsFault| OpenError::Hdfs {
        url: format!("hdfs://{authority}{path}"),
        source: source.into(),
    })
}
