//! Signed requests of the S3 API, one by one, by the signer of `object_store`.

use std::net::SocketAddr;
use std::time::Duration;

use http::Request;
use object_store::ClientOptions;
use object_store::aws::{AmazonS3Builder, AwsAuthorizer, AwsCredential};
use object_store::client::{HttpRequest, HttpRequestBody};
use object_store::signer::Signer;

/// Signs with one access key.
#[derive(Debug)]
pub struct S3Signer {
    credential: AwsCredential,
    address: SocketAddr,
}

impl S3Signer {
    /// For the door at `address`.
    pub fn new(address: SocketAddr, access_key: &str, secret_key: &str) -> Self {
        let credential =
            AwsCredential { key_id: access_key.to_owned(), secret_key: secret_key.to_owned(), token: None };
        Self { credential, address }
    }

    /// A request as it is sent. `headers` are lines; the host is the door's unless they name another.
    pub fn request(&self, method: &str, target: &str, headers: &str, body: &[u8]) -> Vec<u8> {
        let own = format!("host: {}", self.address);
        let pairs: Vec<(&str, &str)> =
            own.lines().chain(headers.lines()).filter_map(|line| line.split_once(": ")).collect();
        let host = pairs.iter().rev().find(|(name, _)| *name == "host").map_or("", |(_, value)| *value);
        let mut request = Request::builder().method(method).uri(format!("http://{host}{target}"));
        for (name, value) in pairs.iter().filter(|(name, _)| *name != "host") {
            request = request.header(*name, *value);
        }
        let mut request: HttpRequest = request.body(HttpRequestBody::from(body.to_vec())).unwrap();
        let signer = AwsAuthorizer::new(&self.credential, "s3", "us-east-1").with_sign_payload(false);
        signer.try_authorize(&mut request, None).unwrap();
        let mut bytes = format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in request.headers().iter().filter(|(name, _)| *name != http::header::HOST) {
            bytes += &format!("{name}: {}\r\n", value.to_str().unwrap());
        }
        [bytes.as_bytes(), b"\r\n", body].concat()
    }

    /// The target of a presigned request.
    pub async fn presigned(&self, method: &str, bucket: &str, key: &str) -> String {
        let store = AmazonS3Builder::new()
            .with_endpoint(format!("http://{}", self.address))
            .with_bucket_name(bucket)
            .with_region("us-east-1")
            .with_access_key_id(&self.credential.key_id)
            .with_secret_access_key(&self.credential.secret_key)
            .with_client_options(ClientOptions::new().with_allow_http(true))
            .build()
            .unwrap();
        let url = store.signed_url(method.parse().unwrap(), &key.into(), Duration::from_secs(600)).await.unwrap();
        format!("{}?{}", url.path(), url.query().unwrap_or_default())
    }
}
