//! TLS: whom a client trusts, and who it is.

use std::io;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::{BoxError, ClientError};

/// Whom a client trusts, and who it is. Of no matter for `http` and Unix sockets.
#[derive(Clone, Default)]
pub struct TlsOptions {
    /// Authorities in PEM that sign the daemon's certificate. None: those that the machine trusts.
    pub ca: Option<Vec<u8>>,
    /// Certificate and private key in PEM, for a daemon that asks for them.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl std::fmt::Debug for TlsOptions {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (ca, identity) = (self.ca.is_some(), self.identity.is_some());
        f.debug_struct("TlsOptions").field("ca", &ca).field("identity", &identity).finish()
    }
}

pub(crate) type TlsSocket = TlsStream<TcpStream>;

/// Shakes hands with a daemon.
#[derive(Clone)]
pub(crate) struct TlsClient(TlsConnector);

impl std::fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsClient")
    }
}

impl TlsClient {
    pub(crate) fn new(options: &TlsOptions) -> Result<Self, ClientError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(unusable)?.with_root_certificates(roots(options)?);
        let mut config = match &options.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let key = PrivateKeyDer::from_pem_slice(key);
                let key = key.map_err(|error| ClientError::Tls(format!("the client's key is not PEM: {error}")))?;
                builder
                    .with_client_auth_cert(certificates("the client's certificate", certificate)?, key)
                    .map_err(unusable)?
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    pub(crate) async fn connect(&self, host: &str, socket: TcpStream) -> Result<TlsSocket, BoxError> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned())?;
        Ok(self.0.connect(name, socket).await.map_err(|error| explained(error, host))?)
    }
}

/// Says what an operator can do, where the library says what a protocol knows.
fn explained(error: io::Error, host: &str) -> io::Error {
    let message = match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
            "the certificate of the daemon is signed by an authority that is not trusted: name it as CA".to_owned()
        }
        Some(rustls::Error::InvalidMessage(_)) => {
            format!("what {host} answers is not TLS: is it http:// instead of https://?")
        }
        _ => return error,
    };
    io::Error::new(error.kind(), message)
}

fn roots(options: &TlsOptions) -> Result<RootCertStore, ClientError> {
    let mut roots = RootCertStore::empty();
    match &options.ca {
        Some(pem) => {
            for certificate in certificates("the CA", pem)? {
                roots.add(certificate).map_err(unusable)?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            let (added, _) = roots.add_parsable_certificates(found.certs);
            if added == 0 {
                return Err(ClientError::Tls("the machine trusts no authority: name a CA".to_owned()));
            }
        }
    }
    Ok(roots)
}

fn certificates(what: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err(ClientError::Tls(format!("{what} has no certificate in PEM"))),
        Ok(all) => Ok(all),
        Err(error) => Err(ClientError::Tls(format!("{what} is not PEM: {error}"))),
    }
}

fn unusable(error: rustls::Error) -> ClientError {
    ClientError::Tls(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Client, ClientError, ClientOptions};

    #[test]
    fn what_is_no_certificate_or_no_key_is_told() {
        let with = |tls| Client::with_options("https://host:1", ClientOptions { tls, ..ClientOptions::default() });
        let junk = b"junk".to_vec();

        for tls in [
            TlsOptions { ca: Some(junk.clone()), identity: None },
            TlsOptions { ca: Some(b"-----BEGIN CERTIFICATE-----\nAAAA".to_vec()), identity: None },
            TlsOptions { ca: None, identity: Some((junk.clone(), junk)) },
        ] {
            assert!(matches!(with(tls), Err(ClientError::Tls(_))));
        }
        assert_eq!(format!("{:?}", TlsOptions::default()), "TlsOptions { ca: false, identity: false }");
    }
}
