//! A bucket of S3, or of a store that speaks its protocol.

use std::time::Duration;

use object_store::Error;
use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut};

use super::service::{client_options, retry};
use crate::config::StoreSettings;

/// First pause before a failed request is repeated.
const PAUSE: Duration = Duration::from_millis(50);

/// The client of `bucket`. Credentials are those of the settings, else what AWS's clients find.
pub(super) fn s3(bucket: &str, settings: &StoreSettings) -> Result<AmazonS3, Error> {
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_client_options(client_options(settings))
        .with_retry(retry(settings, PAUSE))
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
