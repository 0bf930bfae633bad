//! A bucket of S3, or of a store that speaks its protocol.

use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, Checksum, S3ConditionalPut};
use object_store::{Certificate, ClientOptions, Error};

use super::creating::CreatingConnector;
use super::service::{UploadCompletion, client_options, retry};
use crate::config::StoreSettings;

/// First pause before a failed request is repeated.
const PAUSE: Duration = Duration::from_millis(50);

/// The client of `bucket`. Credentials are those of the settings, else what AWS's clients find.
pub(super) fn s3(bucket: &str, settings: &StoreSettings, completion: UploadCompletion) -> Result<AmazonS3, Error> {
    let builder = of_settings(from_environment(settings), bucket, settings, client_options(settings));
    match completion {
        UploadCompletion::Replaces => builder.build(),
        UploadCompletion::Creates => builder.with_http_connector(CreatingConnector::default()).build(),
    }
}

/// The client of a bucket of a daemon's S3 door. What is put there is checked against its SHA-256 on arrival, and replaces
/// nothing where it comes in parts.
pub(super) fn door(bucket: &str, settings: &StoreSettings, ca: Option<&[u8]>) -> Result<AmazonS3, Error> {
    let mut options = client_options(settings);
    for certificate in ca.map(Certificate::from_pem_bundle).transpose()?.into_iter().flatten() {
        options = options.with_root_certificate(certificate);
    }
    let builder = of_settings(with_credentials(AmazonS3Builder::new(), settings), bucket, settings, options);
    builder.with_checksum_algorithm(Checksum::SHA256).with_http_connector(CreatingConnector::default()).build()
}

fn of_settings(
    builder: AmazonS3Builder,
    bucket: &str,
    settings: &StoreSettings,
    options: ClientOptions,
) -> AmazonS3Builder {
    let mut builder = builder
        .with_bucket_name(bucket)
        .with_client_options(options)
        .with_retry(retry(settings, PAUSE))
        .with_conditional_put(S3ConditionalPut::ETagMatch);
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = &settings.region {
        builder = builder.with_region(region);
    }
    builder
}

/// Whether settings or environment name credentials. If not, the metadata service of the machine is asked for them.
pub(super) fn names_credentials(settings: &StoreSettings) -> bool {
    let builder = from_environment(settings);
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

/// With credentials alone: those of the settings, else of the environment.
fn from_environment(settings: &StoreSettings) -> AmazonS3Builder {
    with_credentials(AmazonS3Builder::from_env(), settings)
}

fn with_credentials(builder: AmazonS3Builder, settings: &StoreSettings) -> AmazonS3Builder {
    let Some(credentials) = &settings.credentials else { return builder };
    builder.with_access_key_id(&credentials.access_key).with_secret_access_key(credentials.secret_key.expose())
}
