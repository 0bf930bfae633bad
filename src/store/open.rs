//! From a URL to a store that was tried.

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::limit::LimitStore;
use object_store::memory::InMemory;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use super::{Counted, DataStore, DiskSpace, LocalCopy, LocalStore, Multipart, ObjectFiles, ProbeError, Traffic, probe};
use crate::catalog::slate::Placement;
use crate::config::{StoreSettings, StoreUrl};
use crate::metrics::Metrics;
use crate::runtime::Entropy;

/// A store that was tried, and the catalog's place beside it.
#[derive(Debug)]
pub struct Opened {
    /// Where physical files go.
    pub data: DataStore,
    /// Where the catalog goes.
    pub catalog: Placement,
    /// What the local disks of both have room for.
    pub space: DiskSpace,
}

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be made.
    #[error("the folder {} cannot be used", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the operating system says.
        #[source]
        source: std::io::Error,
    },
    /// Direct writes are demanded and do not work.
    #[error("{} takes no direct writes: set store.direct-io to auto or off", folder.display())]
    Direct {
        /// The folder.
        folder: PathBuf,
        /// What the operating system says.
        #[source]
        source: std::io::Error,
    },
    /// The configuration does not make a client.
    #[error("the client for {url} cannot be made")]
    Client {
        /// The store.
        url: String,
        /// What is wrong.
        #[source]
        source: object_store::Error,
    },
    /// The store failed the probe.
    #[error("the store {url} cannot be used")]
    Probe {
        /// The store.
        url: String,
        /// What it did.
        #[source]
        source: ProbeError,
    },
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
) -> Result<Opened, OpenError> {
    let place = Place::make(&settings.url, settings)?;
    let catalog_place = match catalog_url {
        Some(url) if *url != settings.url => Some((url, Place::make(url, settings)?)),
        _ => None,
    };
    let catalog_folder = catalog_place.as_ref().map_or(&place, |(_, place)| place).folder().map(catalog_in);
    let space = disk_space(place.folder(), catalog_folder.as_deref(), settings, metrics)?;
    let data = match &place {
        Place::Folder(folder) => {
            let store = LocalStore::new(folder.clone(), Traffic::data(metrics.clone())).with_space(space.clone());
            let store = store.with_direct_io(settings.direct_io, &entropy.hex(8));
            DataStore::Local(store.map_err(|source| OpenError::Direct { folder: folder.clone(), source })?)
        }
        Place::Store(store, multipart, prefix) => {
            let traffic = Traffic::data(metrics.clone());
            let multipart = Multipart::new(Arc::clone(multipart), settings.concurrent_requests_max, traffic);
            let counted: Arc<dyn ObjectStore> =
                Arc::new(Counted::new(Arc::clone(store), Traffic::data(metrics.clone())));
            let copy = local_copy(settings, metrics).await;
            DataStore::Object(ObjectFiles::new(counted, multipart, prefix.clone(), settings).with_copy(copy))
        }
    };
    let (url, place) = catalog_place.unwrap_or((&settings.url, place));
    let catalog = match place {
        Place::Folder(folder) => Placement::Local {
            folder: catalog_in(&folder),
            traffic: Traffic::catalog(metrics.clone()),
            space: space.clone(),
        },
        Place::Store(store, _, prefix) => {
            let counted = Counted::new(store, Traffic::catalog(metrics.clone()));
            let key = prefix.clone().join("probe").join(entropy.hex(16));
            let probed = probe(&counted, &key).await;
            probed.map_err(|source| OpenError::Probe { url: url.to_string(), source })?;
            Placement::Object { store: Arc::new(counted), prefix: prefix.join("catalog") }
        }
    };
    Ok(Opened { data, catalog, space })
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

/// The data of a store, for looking at it: nothing is tried, made or kept beside it.
///
/// # Errors
/// [`OpenError::Client`].
pub fn open_data(settings: &StoreSettings, metrics: &Metrics) -> Result<DataStore, OpenError> {
    let traffic = Traffic::data(metrics.clone());
    if let StoreUrl::File(folder) = &settings.url {
        let absolute = std::path::absolute(folder);
        let folder = absolute.map_err(|source| OpenError::Folder { folder: folder.clone(), source })?;
        return Ok(DataStore::Local(LocalStore::new(folder, traffic)));
    }
    match Place::make(&settings.url, settings)? {
        Place::Folder(folder) => Ok(DataStore::Local(LocalStore::new(folder, traffic))),
        Place::Store(store, multipart, prefix) => {
            let multipart = Multipart::new(multipart, settings.concurrent_requests_max, traffic.clone());
            let counted = Arc::new(Counted::new(store, traffic));
            Ok(DataStore::Object(ObjectFiles::new(counted, multipart, prefix, settings)))
        }
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
    Ok(match Place::make(url, settings)? {
        Place::Folder(folder) => return local_catalog(&folder, traffic, settings, metrics),
        Place::Store(store, _, prefix) => {
            Placement::Object { store: Arc::new(Counted::new(store, traffic)), prefix: prefix.join("catalog") }
        }
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
    let space =
        if folder.exists() { disk_space(None, Some(&folder), settings, metrics)? } else { DiskSpace::default() };
    Ok(Placement::Local { folder, traffic, space })
}

async fn local_copy(settings: &StoreSettings, metrics: &Metrics) -> Option<LocalCopy> {
    let copy = settings.local_copy.clone()?;
    let store = format!("{} {}", settings.url, settings.endpoint.as_deref().unwrap_or_default());
    let metrics = metrics.clone();
    tokio::task::spawn_blocking(move || LocalCopy::open(&copy, &store, &metrics)).await.ok().flatten()
}

/// What a URL names.
enum Place {
    Folder(PathBuf),
    Store(Arc<dyn ObjectStore>, Arc<dyn MultipartStore>, Path),
}

impl Place {
    fn folder(&self) -> Option<&PathBuf> {
        match self {
            Self::Folder(folder) => Some(folder),
            Self::Store(..) => None,
        }
    }

    fn make(url: &StoreUrl, settings: &StoreSettings) -> Result<Self, OpenError> {
        match url {
            StoreUrl::File(folder) => {
                let made = std::fs::create_dir_all(folder.join("data")).and_then(|()| std::path::absolute(folder));
                let folder = made.map_err(|source| OpenError::Folder { folder: folder.clone(), source })?;
                Ok(Self::Folder(folder))
            }
            StoreUrl::Memory => {
                let store = Arc::new(InMemory::new());
                Ok(Self::Store(Arc::<InMemory>::clone(&store), store, Path::default()))
            }
            StoreUrl::S3 { bucket, prefix } => {
                let store =
                    s3(bucket, settings).map_err(|source| OpenError::Client { url: url.to_string(), source })?;
                let limited = LimitStore::new(store.clone(), settings.concurrent_requests_max);
                Ok(Self::Store(Arc::new(limited), Arc::new(store), Path::from(prefix.as_str())))
            }
        }
    }
}

fn s3(bucket: &str, settings: &StoreSettings) -> Result<object_store::aws::AmazonS3, object_store::Error> {
    let retry = RetryConfig {
        backoff: BackoffConfig { init_backoff: std::time::Duration::from_millis(50), ..BackoffConfig::default() },
        max_retries: 5,
        retry_timeout: settings.retry_timeout,
    };
    let allow_http = settings.allow_http || settings.endpoint.as_ref().is_some_and(|url| is_loopback(url));
    let options = ClientOptions::new().with_timeout(settings.request_timeout).with_allow_http(allow_http);
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_client_options(options)
        .with_retry(retry)
        .with_conditional_put(S3ConditionalPut::ETagMatch);
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = &settings.region {
        builder = builder.with_region(region);
    }
    if let Some(credentials) = &settings.credentials {
        builder =
            builder.with_access_key_id(&credentials.access_key).with_secret_access_key(credentials.secret_key.expose());
    }
    builder.build()
}

/// Whether plain HTTP to this endpoint stays on this machine.
fn is_loopback(url: &str) -> bool {
    ["http://127.", "http://localhost", "http://[::1]"].iter().any(|start| url.starts_with(start))
}
