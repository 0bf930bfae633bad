//! A container of Azure Blob Storage.
//!
//! Blobs are created and updated on condition of their entity tag, which the service decides atomically. A large file is put
//! as blocks, and the list of them makes the blob. Blocks that no list names belong to the name alone: the
//! next list drops them, and the service does after a week. Until then nothing can be created under the name on condition
//! that nothing is there, though nothing is.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::azure::{AzureConfigKey, MicrosoftAzure, MicrosoftAzureBuilder};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};

use super::creating::CreatingConnector;
use super::service::{UploadCompletion, client_options, retry};
use crate::config::StoreSettings;

/// First pause before a failed request is repeated.
const PAUSE: Duration = Duration::from_millis(50);

/// Other clients of Azure read this variable of the environment; this one does not.
pub(super) const CONNECTION_STRING: &str = "AZURE_STORAGE_CONNECTION_STRING";

/// The container whose account is at `host` (`account.dfs.core.windows.net`), or the one that settings or environment
/// name. `None` if nobody names an account.
pub(super) fn azure(
    host: Option<&str>,
    container: &str,
    settings: &StoreSettings,
    completion: UploadCompletion,
) -> Result<Option<MicrosoftAzure>, object_store::Error> {
    let builder = builder(host, container, settings);
    if builder.get_config_value(&AzureConfigKey::AccountName).is_none() {
        return Ok(None);
    }
    let builder = builder.with_client_options(client_options(settings)).with_retry(retry(settings, PAUSE));
    match completion {
        UploadCompletion::Replaces => builder.build().map(Some),
        UploadCompletion::Creates => {
            let connector = CreatingConnector::default();
            let client = builder.with_http_connector(connector.clone()).build()?;
            connector.sign_as(&client);
            Ok(Some(client))
        }
    }
}

/// The account that settings or environment name, for URLs without one.
pub fn azure_account(settings: &StoreSettings) -> Option<String> {
    builder(None, "", settings).get_config_value(&AzureConfigKey::AccountName)
}

/// Whether settings or environment name credentials. If not, the managed identity of the machine is asked for.
pub(super) fn names_credentials(settings: &StoreSettings) -> bool {
    let builder = builder(None, "", settings);
    let has = |key| builder.get_config_value(&key).is_some_and(|value| !value.is_empty() && value != "false");
    let named = [
        AzureConfigKey::AccessKey,
        AzureConfigKey::Token,
        AzureConfigKey::SasKey,
        AzureConfigKey::CredentialType,
        AzureConfigKey::MsiEndpoint,
        AzureConfigKey::UseAzureCli,
        AzureConfigKey::UseEmulator,
        AzureConfigKey::SkipSignature,
        AzureConfigKey::FabricSessionToken,
    ];
    let principal = has(AzureConfigKey::ClientId) && has(AzureConfigKey::AuthorityId);
    let secret = has(AzureConfigKey::ClientSecret) || has(AzureConfigKey::FederatedTokenFile);
    named.into_iter().any(has) || (principal && secret)
}

fn builder(host: Option<&str>, container: &str, settings: &StoreSettings) -> MicrosoftAzureBuilder {
    let mut builder = MicrosoftAzureBuilder::from_env().with_container_name(container);
    if let Some(account) = host.and_then(|host| host.split('.').next()).or(settings.azure.account.as_deref()) {
        builder = builder.with_account(account);
    }
    if let Some(endpoint) = endpoint(host, settings) {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(key) = &settings.azure.account_key {
        // Chosen over whatever else the environment offers.
        builder = builder.with_access_key(key.expose());
        let chosen = [
            (AzureConfigKey::CredentialType, "access_key"),
            (AzureConfigKey::UseEmulator, "false"),
            (AzureConfigKey::SkipSignature, "false"),
        ];
        builder = chosen.into_iter().fold(builder, |builder, (key, value)| builder.with_config(key, value));
    }
    builder
}

/// Blobs of an account in another cloud than the public one are at another place. `None`: where they mostly are.
fn endpoint(host: Option<&str>, settings: &StoreSettings) -> Option<String> {
    // With a slash at its end it would not be found again in the names of a batch.
    let set = settings.endpoint.as_deref().map(|endpoint| endpoint.trim_end_matches('/').to_owned());
    set.or_else(|| host.map(|host| format!("https://{}", host.replacen(".dfs.", ".blob.", 1))))
}

/// A container whose listings from a name on are filtered here.
///
/// The client asks for them with `startFrom`, which the version of the service that it speaks does not know: all names
/// would be listed, or none.
#[derive(Debug)]
pub(super) struct AzureObjects(pub(super) MicrosoftAzure);

impl fmt::Display for AzureObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl AzureObjects {
    pub(super) fn shared(container: MicrosoftAzure) -> Arc<dyn ObjectStore> {
        Arc::new(Self(container))
    }
}

/// Without `list_with_offset`: the trait's own filters what is listed.
#[async_trait]
impl ObjectStore for AzureObjects {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.0.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.0.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.0.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}
