//! What the files of `[tls]` hold, and whether it can be used.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig};

use super::validity::{shown, validity};
use crate::config::{ClientAuth, TlsSettings, readable_by_others};
use crate::runtime::Clock;

const CERT: &str = "tls.cert";
const KEY: &str = "tls.key";
const CLIENT_CA: &str = "tls.client-ca";

/// A file of `[tls]` that cannot be used. Nothing but another file helps.
#[derive(Debug, thiserror::Error)]
#[error("{key} = {path:?}: {reason}")]
pub struct TlsError {
    /// The key that names the file.
    key: &'static str,
    path: String,
    reason: String,
    #[source]
    source: Option<io::Error>,
}

impl TlsError {
    fn new(key: &'static str, path: &Path, reason: impl Into<String>) -> Self {
        Self { key, path: path.display().to_string(), reason: reason.into(), source: None }
    }

    /// The certificate is not good yet.
    pub(super) fn early(settings: &TlsSettings, begins: i64) -> Self {
        let reason = format!("is not good before {}, or the clock is wrong", shown(begins));
        Self::new(CERT, &settings.cert, reason)
    }
}

/// The contents of the files of `[tls]`.
#[derive(PartialEq, Eq)]
pub struct TlsFiles {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Vec<u8>,
    /// Some of them could not be read at the last look.
    missing: bool,
}

crate::runtime::opaque_debug!(TlsFiles);

/// What a door shows to its clients.
pub(super) struct Identity {
    pub config: ServerConfig,
    /// The second since 1970 before which the certificate is not good yet.
    pub begins: i64,
    /// The second since 1970 after which the certificate is good no more.
    pub expires: i64,
}

impl TlsFiles {
    /// Reads the files. Says in the log who else may read the key.
    ///
    /// # Errors
    /// [`TlsError`] if one cannot be read.
    pub fn read(settings: &TlsSettings) -> Result<Self, TlsError> {
        let read = |key, path: &Path| std::fs::read(path).map_err(|source| unreadable(key, path, source));
        Ok(Self {
            cert: read(CERT, &settings.cert)?,
            key: read(KEY, &settings.key)?,
            client_ca: settings.client_ca.as_deref().map_or(Ok(vec![]), |path| read(CLIENT_CA, path))?,
            missing: false,
        })
    }

    pub(super) async fn read_again(settings: &TlsSettings) -> Result<Self, TlsError> {
        let settings = settings.clone();
        #[expect(clippy::disallowed_methods, reason = "awaited at once, and a panic becomes the error")]
        let read = tokio::task::spawn_blocking(move || Self::read(&settings)).await;
        read.unwrap_or_else(|_| Err(TlsError::new(CERT, Path::new(""), "reading it failed by a bug")))
    }

    /// Notes that files are missing. Whether that is news.
    pub(super) fn set_missing(&mut self) -> bool {
        !std::mem::replace(&mut self.missing, true)
    }

    /// Whether a door could show what the files hold.
    ///
    /// # Errors
    /// [`TlsError`] if it could not.
    pub fn check(&self, settings: &TlsSettings, clock: &Clock) -> Result<(), TlsError> {
        self.identity(settings, clock).map(|_| ())
    }

    /// What is legal and hardly meant, a sentence each.
    pub fn warnings(&self, settings: &TlsSettings, clock: &Clock) -> Vec<String> {
        let now = now(clock);
        let first = certificates(CERT, &settings.cert, &self.cert).ok().and_then(|chain| chain.into_iter().next());
        let early = first.and_then(|first| validity(&first)).filter(|validity| validity.not_before > now);
        let early = early.map(|validity| TlsError::early(settings, validity.not_before).to_string());
        readable_by_others(KEY, &settings.key).into_iter().chain(early).collect()
    }

    pub(super) fn identity(&self, settings: &TlsSettings, clock: &Clock) -> Result<Identity, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let bad_cert = |reason: String| TlsError::new(CERT, &settings.cert, reason);
        let chain = certificates(CERT, &settings.cert, &self.cert)?;
        let times = chain.first().and_then(|first| validity(first));
        let times = times.ok_or_else(|| bad_cert("the first certificate in it is none".to_owned()))?;
        if times.not_after < now(clock) {
            return Err(bad_cert(format!("the certificate expired at {}", shown(times.not_after))));
        }
        let bad_key = |reason: String| TlsError::new(KEY, &settings.key, reason);
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|error| {
            bad_key(match error {
                PemError::NoItemsFound => {
                    "there is no private key in it (PEM: PKCS #8, PKCS #1 or SEC 1, not encrypted)".to_owned()
                }
                error => format!("is not PEM: {error}"),
            })
        })?;
        let key = provider.key_provider.load_private_key(key);
        let key = key.map_err(|error| bad_key(format!("is no key that can be used: {error}")))?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(bad_key(format!("is not the key of the certificate in {CERT} = {:?}", settings.cert)));
            }
            Err(error) => return Err(bad_cert(format!("is no certificate that can be used: {error}"))),
        }
        let verifier = self.verifier(settings)?;
        let versions = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let versions = versions.map_err(|error| bad_cert(error.to_string()))?;
        let builder = match verifier {
            Some(verifier) => versions.with_client_cert_verifier(verifier),
            None => versions.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Identity { config, begins: times.not_before, expires: times.not_after })
    }

    fn verifier(&self, settings: &TlsSettings) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
        let Some(path) = settings.client_ca.as_deref() else { return Ok(None) };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(CLIENT_CA, path, &self.client_ca)? {
            let added = roots.add(certificate);
            added.map_err(|error| TlsError::new(CLIENT_CA, path, format!("is no authority: {error}")))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        if settings.client_auth == ClientAuth::Optional {
            builder = builder.allow_unauthenticated();
        }
        builder.build().map(Some).map_err(|error| TlsError::new(CLIENT_CA, path, error.to_string()))
    }
}

/// The second since 1970.
pub(super) fn now(clock: &Clock) -> i64 {
    i64::try_from(clock.wall().0 / 1000).unwrap_or(i64::MAX)
}

fn unreadable(key: &'static str, path: &Path, source: io::Error) -> TlsError {
    TlsError { source: Some(source), ..TlsError::new(key, path, "cannot be read") }
}

/// The certificates in a PEM file, of which there are some.
fn certificates(key: &'static str, path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, PemError> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err(TlsError::new(key, path, "there is no certificate in it (PEM)")),
        Ok(all) => Ok(all),
        Err(error) => Err(TlsError::new(key, path, format!("is not PEM: {error}"))),
    }
}
