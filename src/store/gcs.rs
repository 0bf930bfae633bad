//! A bucket of Google Cloud Storage.
//!
//! Objects are created and updated on condition of their generation (`x-goog-if-generation-match`), which the service
//! decides atomically. It takes one write a second under one name: names of files are never used again, and what is
//! written twice waits for that long ([`Capabilities::rewrite_interval`](super::Capabilities::rewrite_interval)) or is
//! repeated after as long.

use std::path::Path;
use std::time::Duration;

use object_store::gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder, GoogleConfigKey};

use super::service::{client_options, retry};
use crate::config::StoreSettings;

/// First pause before a refused request is repeated. Five of them are longer than a second at least: so a write that came
/// too early after another one gets through.
const PAUSE: Duration = Duration::from_millis(250);

/// Where `gcloud auth application-default login` leaves credentials, below the home folder.
const GCLOUD_FILE: &str = ".config/gcloud/application_default_credentials.json";

/// The client of `bucket`. Credentials are those of a service account if the settings name one, else what Google's
/// clients find.
pub(super) fn gcs(bucket: &str, settings: &StoreSettings) -> Result<GoogleCloudStorage, object_store::Error> {
    let mut builder = builder(settings);
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_base_url(endpoint.trim_end_matches('/'));
    }
    builder
        .with_bucket_name(bucket)
        .with_client_options(client_options(settings))
        .with_retry(retry(settings, PAUSE))
        .build()
}

/// Whether settings, environment or `gcloud` name credentials. If not, the metadata server of the machine is asked for them.
pub(super) fn names_credentials(settings: &StoreSettings) -> bool {
    let builder = builder(settings);
    let has = |key| builder.get_config_value(&key).is_some_and(|value| !value.is_empty() && value != "false");
    let named = [
        GoogleConfigKey::ServiceAccount,
        GoogleConfigKey::ServiceAccountKey,
        GoogleConfigKey::ApplicationCredentials,
        GoogleConfigKey::BearerToken,
        GoogleConfigKey::SkipSignature,
    ];
    let of_gcloud = || {
        let home = std::env::var_os("HOME")?;
        Some(Path::new(&home).join(GCLOUD_FILE).exists())
    };
    named.into_iter().any(has) || of_gcloud() == Some(true)
}

fn builder(settings: &StoreSettings) -> GoogleCloudStorageBuilder {
    match &settings.gcs_service_account {
        // Without the environment: a second source beside the one that was chosen would be an error.
        Some(file) => GoogleCloudStorageBuilder::new().with_service_account_path(file.to_string_lossy()),
        None => GoogleCloudStorageBuilder::from_env(),
    }
}
