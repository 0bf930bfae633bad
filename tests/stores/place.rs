//! The kinds of stores.

use esker::config::Config;
use esker::metrics::Metrics;
use esker::runtime::{Clock, Entropy};
use esker::store::{OpenError, OpenedStore};
use tempfile::TempDir;

use crate::s3_server::{self, Conditions, S3Server};
use crate::service::{BUCKET, Service};
use crate::{azure, gcs};

/// The account that Azurite has, and its key. Both are in its documentation.
const AZURITE: (&str, &str) =
    ("devstoreaccount1", "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==");

/// A kind of store, and what of it lives as long as the test.
pub struct Place {
    pub name: &'static str,
    pub flags: Vec<(String, String)>,
    /// Whether what is opened again is the same.
    pub lasts: bool,
    pub folder: Option<TempDir>,
    /// Google Cloud Storage or Azure.
    pub service: Option<Service>,
    /// S3.
    pub server: Option<S3Server>,
}

impl Place {
    pub fn new(name: &'static str, pairs: &[(&str, &str)]) -> Self {
        let flags = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Self { name, flags, lasts: true, folder: None, service: None, server: None }
    }

    /// The same with some keys of the configuration set otherwise.
    pub fn with(mut self, changed: &[(&str, &str)]) -> Self {
        for (key, value) in changed {
            self.flags.retain(|(known, _)| known != key);
            self.flags.push(((*key).to_owned(), (*value).to_owned()));
        }
        self
    }

    pub async fn try_open(&self) -> Result<OpenedStore, OpenError> {
        let settings = Config::load_with(None, [], &self.flags).unwrap().settings().unwrap();
        let entropy = Entropy::from_os(Clock::System);
        esker::store::open(&settings.store, None, &Metrics::new(), &entropy).await
    }

    pub async fn open(&self) -> OpenedStore {
        let opened = self.try_open().await;
        opened.unwrap_or_else(|error| panic!("{}: {}", self.name, esker::error::chain(&error)))
    }

    /// The service behind a place that has one of these tests.
    pub fn service(&self) -> &Service {
        self.service.as_ref().unwrap()
    }
}

/// One of each kind, each new.
pub async fn places() -> Vec<Place> {
    let memory = Place { lasts: false, ..Place::new("memory", &[("store.url", "memory:")]) };
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file:{}", folder.path().display());
    let local = Place { folder: Some(folder), ..Place::new("local", &[("store.url", &url)]) };
    let mut places = vec![memory, local];
    places.extend(services().await);
    match std::env::var("ESKER_HDFS_URL") {
        Ok(url) => {
            let url = format!("{url}/stores-{:08x}", rand::random::<u32>());
            places.push(Place::new("hdfs", &[("store.url", &url), ("store.hdfs.block-size", "8 mb")]));
        }
        Err(_) => println!("skipped: HDFS, ESKER_HDFS_URL names none"),
    }
    places
}

/// One of each object storage service, each new.
pub async fn services() -> Vec<Place> {
    let mut places = vec![on_s3().await, on_gcs().await, on_azure().await];
    match std::env::var("ESKER_AZURITE") {
        Ok(endpoint) => {
            let url = format!("az://{BUCKET}/stores-{:08x}", rand::random::<u32>());
            places.push(container("azurite", &url, &endpoint, AZURITE));
        }
        Err(_) => println!("skipped: Azurite, ESKER_AZURITE names none; tests/stores/run does"),
    }
    places
}

pub async fn on_s3() -> Place {
    s3(S3Server::start().await)
}

/// A bucket of this server.
pub fn s3(server: S3Server) -> Place {
    let (url, endpoint) = (format!("s3://{}/stores", s3_server::BUCKET), server.endpoint());
    let flags = [
        ("store.url", url.as_str()),
        ("store.endpoint", endpoint.as_str()),
        ("store.region", s3_server::REGION),
        ("store.access-key", s3_server::ACCESS_KEY),
        ("store.secret-key", s3_server::SECRET_KEY),
    ];
    Place { server: Some(server), ..Place::new("s3", &flags) }
}

pub async fn on_gcs() -> Place {
    bucket(gcs::start(Conditions::Honoured).await)
}

/// With the key of a service account.
pub fn bucket(service: Service) -> Place {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("service-account.json");
    let account = serde_json::json!({
        "type": "service_account",
        "client_email": "esker@example.iam.gserviceaccount.com",
        "private_key_id": "1",
        "private_key": esker_test_support::certs::rsa_key(),
    });
    std::fs::write(&key, account.to_string()).unwrap();
    let key = key.display().to_string();
    let (url, endpoint) = (format!("gs://{BUCKET}/stores"), service.endpoint());
    let flags = [("store.url", url.as_str()), ("store.endpoint", &endpoint), ("store.gcs.service-account", &key)];
    Place { folder: Some(folder), service: Some(service), ..Place::new("gcs", &flags) }
}

pub async fn on_azure() -> Place {
    account(azure::start(Conditions::Honoured).await)
}

/// With the key of a storage account.
pub fn account(service: Service) -> Place {
    let endpoint = format!("{}/{}", service.endpoint(), azure::ACCOUNT);
    // In the URL of one, and beside that of the other.
    let url = format!("abfss://{BUCKET}@{}.dfs.core.windows.net/stores", azure::ACCOUNT);
    let place = container("azure", &url, &endpoint, (azure::ACCOUNT, azure::ACCOUNT_KEY));
    Place { service: Some(service), ..place }
}

fn container(name: &'static str, url: &str, endpoint: &str, (account, key): (&str, &str)) -> Place {
    let flags = [
        ("store.url", url),
        ("store.endpoint", endpoint),
        ("store.azure.account", account),
        ("store.azure.account-key", key),
    ];
    Place::new(name, &flags)
}
