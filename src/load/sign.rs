//! Signatures of S3 requests (SigV4), by the signer of `object_store`, without the rest of its client: that one costs
//! more CPU time than the servers that are measured.

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Request, header};
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::{HttpRequest, HttpRequestBody};

/// Header with the SHA-256 of the body in hex.
const CONTENT_SHA256: HeaderName = HeaderName::from_static("x-amz-content-sha256");

/// The part of a body that is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// Nothing: `UNSIGNED-PAYLOAD`.
    Unsigned,
    /// This SHA-256.
    Sha256(Vec<u8>),
}

/// Signs requests for one server.
#[derive(Debug)]
pub struct Signer {
    credential: AwsCredential,
    region: String,
    /// `HOST:PORT`, as clients send it.
    authority: String,
}

impl Signer {
    /// Signs for the server at `authority`.
    pub fn new(authority: &str, region: &str, access_key: &str, secret_key: &str) -> Self {
        let (key_id, secret_key) = (access_key.to_owned(), secret_key.to_owned());
        let credential = AwsCredential { key_id, secret_key, token: None };
        Self { credential, region: region.to_owned(), authority: authority.to_owned() }
    }

    /// The headers of a PUT of `path`, as of [`Self::headers`].
    ///
    /// # Errors
    /// When it is no path.
    pub fn put(&self, path: &str, payload: &Payload) -> anyhow::Result<HeaderMap> {
        self.headers(&Method::PUT, path, payload)
    }

    /// The headers of a request for `path`: host, date, signature. The path must need no encoding.
    ///
    /// # Errors
    /// When it is no path.
    pub fn headers(&self, method: &Method, path: &str, payload: &Payload) -> anyhow::Result<HeaderMap> {
        let mut request = self.request(path, HttpRequestBody::empty())?;
        *request.method_mut() = method.clone();
        let signer = AwsAuthorizer::new(&self.credential, "s3", &self.region);
        match payload {
            Payload::Unsigned => signer.with_sign_payload(false).try_authorize(&mut request, None)?,
            Payload::Sha256(digest) => signer.try_authorize(&mut request, Some(digest))?,
        }
        let mut headers = std::mem::take(request.headers_mut());
        headers.insert(header::HOST, self.authority.parse().context("the host")?);
        Ok(headers)
    }

    /// The SHA-256 of a body.
    ///
    /// # Errors
    /// When the signer has none.
    pub fn digest(&self, body: &Bytes) -> anyhow::Result<Payload> {
        let mut request = self.request("/", HttpRequestBody::from(body.clone()))?;
        AwsAuthorizer::new(&self.credential, "s3", &self.region).try_authorize(&mut request, None)?;
        let digest = request.headers().get(CONTENT_SHA256).context("the signer gave no digest")?;
        Ok(Payload::Sha256(hex::decode(digest)?))
    }

    fn request(&self, path: &str, body: HttpRequestBody) -> anyhow::Result<HttpRequest> {
        let uri = format!("http://{}{path}", self.authority);
        Request::put(uri).body(body).context("the path")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_carry_host_digest_and_signature() {
        let signer = Signer::new("127.0.0.1:9", "us-east-1", "AK", "SK");
        let body = Bytes::from_static(b"abc");

        let unsigned = signer.put("/b/k", &Payload::Unsigned).unwrap();
        let signed = signer.put("/b/k", &signer.digest(&body).unwrap()).unwrap();

        // The digest of "abc" in FIPS 180-2, appendix B.1.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(unsigned[CONTENT_SHA256], "UNSIGNED-PAYLOAD");
        assert_eq!(signed[CONTENT_SHA256], abc);
        assert_eq!(signed[header::HOST], "127.0.0.1:9");
        assert!(signed[header::AUTHORIZATION].to_str().unwrap().starts_with("AWS4-HMAC-SHA256 Credential=AK/"));
    }
}
