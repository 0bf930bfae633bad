//! A bucket of S3, or of a store that speaks its protocol.

use std::time::Duration;

use object_store::Error;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};

use super::service::{client_options, retry};
use crate::config::StoreSettings;

/// First pause before a failed request is repeated.
const PAUSE: Duration = Duration::from_millis(50);

/// The client of `bucket`. Credentials are those of the settings, else what AWS's clients find.
pub(super) fn s3(bucket: &str, settings: &StoreSettings) -> Result<AmazonS3, Error> {
    let mut builder = builder(settings)
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
    builder.build()
}

/// Whether settings or environment name credentials. If not, the metadata service of the machine is asked for them.
pub(super) fn names_credentials(settings: &StoreSettings) -> bool {
    let builder = builder(settings);
    let has = |key| builder.get_config_value(&key).is_some_and(|value| !value.is_empty() && value != "false");
    let one = [
        AmazonS3ConfigKey::AccessKeyId,
        AmazonS3ConfigKey::SecretAccessKey,
        AmazonS3ConfigKey::ContainerCredentialsRelativeUri,
        AmazonS3ConfigKey::MetadataEndpoint,
        AmazonS3ConfigKey::SkipSignature,
    ];
    let two = [
        [AmazonS3ConfigKey::WebIdentityTokenFile, AmazonS3ConfigKey::RoleArn],
        [AmazonS3ConfigKey::ContainerCredentialsFullUri, AmazonS3ConfigKey::ContainerAuthorizationTokenFile],
    ];
    one.into_iter().any(has) || two.into_iter().any(|both| both.into_iter().all(has))
}

/// With the credentials alone.
fn builder(settings: &StoreSettings) -> AmazonS3Builder {
    let mut builder = AmazonS3Builder::from_env();
    if let Some(credentials) = &settings.credentials {
        builder =
            builder.with_access_key_id(&credentials.access_key).with_secret_access_key(credentials.secret_key.expose());
    }
    builder
}
