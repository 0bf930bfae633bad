//! Buckets in host names, signed and behind a wildcard certificate. Path style stays.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::certs::{Authority, put};
use crate::daemon::TestDaemon;
use crate::raw::ask;
use crate::support::signed::S3Signer;

const FLAGS: [(&str, &str); 3] =
    [("auth.access-key", "k"), ("auth.secret-key", "s"), ("server.virtual-host-domains", "s3.local,example.com")];

#[tokio::test]
async fn a_bucket_may_stand_in_the_host_and_in_the_path() {
    let daemon = TestDaemon::start(&FLAGS).await;
    let signer = S3Signer::new(daemon.s3(), "k", "s");
    let send = async |method: &str, target: &str, host: &str, body: &[u8]| {
        ask(daemon.s3(), signer.request(method, target, &format!("host: {host}"), body)).await
    };

    let own = daemon.s3().to_string();
    assert_eq!(send("PUT", "/a/key", "checkpoints.s3.local", b"1").await.status, 200);
    assert_eq!(send("PUT", "/checkpoints/b", "s3.local", b"2").await.status, 200);
    assert_eq!(send("PUT", "/my.dotted", &own, b"").await.status, 200);
    assert_eq!(send("PUT", "/c", "my.dotted.s3.local:9000", b"3").await.status, 200);

    for (target, host, body) in [
        ("/checkpoints/a/key", own.as_str(), "1"),
        ("/a/key", "checkpoints.s3.local", "1"),
        ("/b", "checkpoints.s3.local:1234", "2"),
        ("/my.dotted/c", own.as_str(), "3"),
        // Whoever is no configured domain is a name of this host.
        ("/checkpoints/b", "checkpoints.other.local", "2"),
    ] {
        let answer = send("GET", target, host, b"").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, body), "{host} {target}");
    }
    let listed = send("GET", "/?list-type=2", "checkpoints.s3.local", b"").await;
    assert!(listed.text().contains("<Key>a/key</Key>"), "{}", listed.text());
    let buckets = send("GET", "/", "s3.local", b"").await;
    assert!(buckets.text().contains("<Name>checkpoints</Name>"), "{}", buckets.text());
}

#[tokio::test]
async fn a_wildcard_certificate_covers_buckets() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new("authority"));
    let (cert, key) = authority.issue(&["s3.local", "*.s3.local"]).write(folder.path());
    put(folder.path(), "ca.pem", &authority.cert);
    let (cert, key) = (cert.display().to_string(), key.display().to_string());
    let daemon =
        TestDaemon::start(&[&FLAGS[..], &[("tls.cert", cert.as_str()), ("tls.key", key.as_str())]].concat()).await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.cert.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(builder.with_root_certificates(roots).with_no_client_auth());
    let signer = S3Signer::new(daemon.s3(), "k", "s");

    for (host, target) in [("checkpoints.s3.local", "/key"), ("s3.local", "/checkpoints/key")] {
        let socket = TcpStream::connect(daemon.s3()).await.unwrap();
        let name = ServerName::try_from(host).unwrap();
        let mut stream = TlsConnector::from(Arc::clone(&config)).connect(name, socket).await.unwrap();
        stream
            .write_all(&signer.request("PUT", target, &format!("host: {host}\nconnection: close"), b"x"))
            .await
            .unwrap();
        let mut answer = vec![];
        stream.read_to_end(&mut answer).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{host}: {}", String::from_utf8_lossy(&answer));
    }
}
