//! Uploads in parts that replace nothing: one that is completed where something has its name by then is refused.
//!
//! The client completes an upload without a condition. Here `If-None-Match: *` is put to that request on its way out, which S3
//! (`CompleteMultipartUpload`) and Azure (`Put Block List`) decide atomically. S3's signature covers the headers that it names,
//! and this is none of them, as where the client itself completes a copy on that condition. One with an account key of Azure
//! covers this header, too, and is made again.
//!
//! Google Cloud Storage takes no condition there.

use std::sync::{Arc, OnceLock, Weak};

use async_trait::async_trait;
use http::header::{AUTHORIZATION, IF_NONE_MATCH};
use http::{HeaderValue, Method};
use object_store::azure::{AzureAuthorizer, AzureCredential, MicrosoftAzure};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use object_store::{ClientOptions, CredentialProvider};

/// Before the account and the signature, where a request is signed with an account key of Azure.
const SHARED_KEY: &str = "SharedKey ";

/// The keys of a client, which is there as long as it asks. They are known once it is made.
type AzureKeys = Arc<OnceLock<Weak<dyn CredentialProvider<Credential = AzureCredential>>>>;

/// Makes connections of a client whose uploads in parts replace nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct CreatingConnector {
    keys: AzureKeys,
}

impl CreatingConnector {
    /// Signs with the keys of `client` from now on.
    pub(super) fn sign_as(&self, client: &MicrosoftAzure) {
        self.keys.get_or_init(|| Arc::downgrade(client.credentials()));
    }
}

impl HttpConnector for CreatingConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(CreatingService { inner, keys: Arc::clone(&self.keys) }))
    }
}

#[derive(Debug)]
struct CreatingService {
    inner: HttpClient,
    keys: AzureKeys,
}

#[async_trait]
impl HttpService for CreatingService {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if completes_upload(&request) {
            request.headers_mut().insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
            let signed = self.sign_again(&mut request).await;
            signed.map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        }
        self.inner.execute(request).await
    }
}

impl CreatingService {
    async fn sign_again(&self, request: &mut HttpRequest) -> object_store::Result<()> {
        let signature = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let account = signature.and_then(|text| text.strip_prefix(SHARED_KEY)?.split_once(':'));
        let Some((account, _)) = account else { return Ok(()) };
        let account = account.to_owned();
        let Some(keys) = self.keys.get().and_then(Weak::upgrade) else { return Ok(()) };
        let credential = keys.get_credential().await?;
        request.headers_mut().remove(AUTHORIZATION);
        AzureAuthorizer::new(&credential, &account).try_authorize(request)
    }
}

fn completes_upload(request: &HttpRequest) -> bool {
    let query = request.uri().query().unwrap_or_default();
    let mut pairs = query.split('&');
    match *request.method() {
        Method::POST => pairs.any(|pair| pair.starts_with("uploadId=")),
        Method::PUT => pairs.any(|pair| pair == "comp=blocklist"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use object_store::client::HttpRequestBody;

    use super::*;

    #[test]
    fn only_the_request_that_completes_an_upload_is_told_from_the_others() {
        for (method, uri, completes) in [
            (Method::POST, "http://s3/bucket/key?uploadId=x%3D", true),
            (Method::POST, "http://s3/bucket/key?uploads", false),
            (Method::PUT, "http://s3/bucket/key?partNumber=1&uploadId=x", false),
            (Method::DELETE, "http://s3/bucket/key?uploadId=x", false),
            (Method::POST, "http://s3/bucket?delete", false),
            (Method::PUT, "http://azure/container/blob?comp=blocklist&sv=1", true),
            (Method::PUT, "http://azure/container/blob?comp=block&blockid=x", false),
            (Method::PUT, "http://azure/container/blob", false),
        ] {
            let request = http::Request::builder().method(method.clone()).uri(uri);
            assert_eq!(completes_upload(&request.body(HttpRequestBody::empty()).unwrap()), completes, "{method} {uri}");
        }
    }
}
