//! What the clients of all object storage services have in common.

use std::time::Duration;

use object_store::{BackoffConfig, ClientOptions, RetryConfig};

use crate::config::StoreSettings;

/// How often a request is repeated by the client. Whoever asks may do so again until `store.retry-timeout` is over.
const REPEATS_MAX: usize = 5;

/// What becomes of an upload in parts that is completed where something has its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UploadCompletion {
    /// It takes the place of that.
    Replaces,
    /// It is refused, as far as the service can.
    Creates,
}

pub(super) fn client_options(settings: &StoreSettings) -> ClientOptions {
    ClientOptions::new().with_timeout(settings.request_timeout).with_allow_http(settings.allow_http)
}

/// Repeats begin after `pause`.
pub(super) fn retry(settings: &StoreSettings, pause: Duration) -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig { init_backoff: pause, ..BackoffConfig::default() },
        max_retries: REPEATS_MAX,
        retry_timeout: settings.retry_timeout,
    }
}
