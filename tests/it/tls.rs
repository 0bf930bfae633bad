//! TLS at both doors: handshakes, certificates that change, and what is told to whom.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker_client::{Client, ClientError, ClientOptions, TlsOptions};
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::certs::{Authority, Issued, put};
use crate::daemon::TestDaemon;
use crate::process::{Process, esker};
use crate::raw::{Raw, ask, request};

/// Where test daemons are.
const NAMES: [&str; 2] = ["127.0.0.1", "localhost"];
/// Nothing in these tests takes this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// A folder with an authority, and what it signed for a daemon.
struct Setting {
    folder: TempDir,
    authority: Authority,
    issued: Issued,
}

impl Setting {
    fn new() -> Self {
        let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new("test authority"));
        let issued = authority.issue(&NAMES);
        issued.write(folder.path());
        put(folder.path(), "ca.pem", &authority.cert);
        Self { folder, authority, issued }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// A daemon that shows the certificate, and is asked by a client that trusts it.
    async fn start(&self, more: &[(&str, &str)]) -> TestDaemon {
        let (cert, key) = (self.path("cert.pem"), self.path("key.pem"));
        let mut daemon =
            TestDaemon::start(&[&[("tls.cert", cert.as_str()), ("tls.key", key.as_str())], more].concat()).await;
        daemon.client = self.client(daemon.api(), None);
        daemon
    }

    fn client(&self, address: SocketAddr, identity: Option<&Issued>) -> Client {
        let identity = identity.map(|issued| (issued.cert.clone().into_bytes(), issued.key.clone().into_bytes()));
        let tls = TlsOptions { ca: Some(self.authority.cert.clone().into_bytes()), identity };
        Client::with_options(&format!("https://{address}"), ClientOptions { tls, ..ClientOptions::default() }).unwrap()
    }

    /// Shakes hands by hand.
    async fn connect(&self, address: SocketAddr, protocols: &[&str]) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.cert.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let socket = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap()
    }

    /// The certificate that a door shows.
    async fn shown(&self, address: SocketAddr) -> Vec<u8> {
        let stream = self.connect(address, &[]).await;
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }
}

/// Waits until something is the case.
async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A metric that may not have begun.
async fn metric(client: &Client, name: &str) -> f64 {
    let text = client.metrics().await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().unwrap())
}

fn failures(reason: &str) -> String {
    format!("esker_tls_handshake_failures_total{{reason=\"{reason}\"}}")
}

fn reloads(outcome: &str) -> String {
    format!("esker_reloads_total{{of=\"certificate\",outcome=\"{outcome}\"}}")
}

#[tokio::test]
async fn both_doors_speak_tls_and_both_versions_of_http() {
    let setting = Setting::new();
    let daemon = setting.start(&[]).await;

    daemon.client.create_job("wordcount").await.unwrap();
    assert_eq!(daemon.client.jobs().await.unwrap().len(), 1);

    let stream = setting.connect(daemon.s3(), &["h2", "http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    let driven = tokio::spawn(connection);
    let ask = Request::get(format!("https://localhost:{}/", daemon.s3().port())).body(Empty::<Bytes>::new()).unwrap();
    let answer = sender.send_request(ask).await.unwrap();
    assert_eq!(answer.status(), 200);
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(body.windows(11).any(|window| window == b"checkpoints"), "{body:?}");
    drop(sender);
    driven.await.unwrap().unwrap();

    let stream = setting.connect(daemon.s3(), &["http/1.1"]).await;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let driven = tokio::spawn(connection);
    let ask = Request::put("/checkpoints/key").header("host", "localhost").header("content-length", 0);
    assert_eq!(sender.send_request(ask.body(Empty::<Bytes>::new()).unwrap()).await.unwrap().status(), 200);
    drop(sender);
    driven.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_request_without_tls_is_told_so_at_both_doors() {
    let setting = Setting::new();
    let daemon = setting.start(&[]).await;

    let s3 = ask(daemon.s3(), request("GET", "/checkpoints/key", "", b"")).await;
    assert_eq!(s3.status, 400);
    assert!(s3.text().contains("<Code>InvalidRequest</Code>") && s3.text().contains("https://"), "{}", s3.text());
    let put = ask(daemon.s3(), request("PUT", "/checkpoints/key", "", &[7; 100_000])).await;
    assert_eq!(put.status, 400, "{}", put.text());
    let plain = Client::new(&format!("http://{}", daemon.api()), None).unwrap();
    let refused = plain.jobs().await.unwrap_err();
    assert!(refused.to_string().contains("https://"), "{refused}");

    assert_eq!(metric(&daemon.client, &failures("plaintext")).await, 3.0);
}

#[tokio::test]
async fn who_does_not_trust_the_certificate_is_told_and_counted() {
    let setting = Setting::new();
    let daemon = setting.start(&[]).await;

    let other = Setting::new();
    let ClientError::Connection { source, .. } = other.client(daemon.api(), None).jobs().await.unwrap_err() else {
        panic!("it was no matter of the connection");
    };

    assert!(chain(&*source).contains("name it as CA"), "{}", chain(&*source));
    until("the alert is counted", async || metric(&daemon.client, &failures("alert")).await == 1.0).await;
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[tokio::test]
async fn a_new_certificate_is_shown_without_a_restart_and_old_connections_go_on() {
    let setting = Setting::new();
    let daemon = setting.start(&[("server.reload-interval", "20 ms")]).await;
    let stream = setting.connect(daemon.s3(), &["http/1.1"]).await;
    let (mut old, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let driven = tokio::spawn(connection);
    assert_eq!(setting.shown(daemon.s3()).await, setting.issued.der);

    let new = setting.authority.issue(&NAMES);
    new.write(setting.folder.path());

    until("the new one is shown", async || setting.shown(daemon.s3()).await == new.der).await;
    assert_eq!(setting.shown(daemon.api()).await, new.der);
    let again = Request::get("/").header("host", "localhost").body(Empty::<Bytes>::new()).unwrap();
    assert_eq!(old.send_request(again).await.unwrap().status(), 200);
    drop(old);
    driven.await.unwrap().unwrap();
    assert!(metric(&daemon.client, "esker_tls_certificate_expiry_timestamp_seconds").await > 1.7e9);
}

#[tokio::test]
async fn a_new_certificate_that_cannot_be_used_leaves_the_old_one() {
    let setting = Setting::new();
    let daemon = setting.start(&[("server.reload-interval", "0 s")]).await;
    let mut refused = 0.0;

    let folder = setting.folder.path();
    let expired = setting.authority.issue_expired(&NAMES);
    for bad in ["junk", &expired.cert, &setting.authority.issue(&NAMES).cert] {
        put(folder, "cert.pem", bad);
        put(folder, "key.pem", &expired.key);
        refused += 1.0;
        daemon.reload();
        until("it is refused", async || metric(&daemon.client, &reloads("refused")).await == refused).await;
        assert_eq!(setting.shown(daemon.s3()).await, setting.issued.der);
    }
    std::fs::remove_file(folder.join("key.pem")).unwrap();
    daemon.reload();
    until("a missing one is", async || metric(&daemon.client, &reloads("refused")).await == refused + 1.0).await;

    let good = setting.authority.issue(&NAMES);
    good.write(folder);
    daemon.reload();
    until("a good one is used", async || setting.shown(daemon.s3()).await == good.der).await;
    assert_eq!(metric(&daemon.client, &reloads("loaded")).await, 1.0);
}

#[tokio::test]
async fn certificates_of_clients_are_asked_for_and_checked() {
    let setting = Setting::new();
    let (ca, mine) = (setting.path("ca.pem"), setting.authority.issue(&["client"]));
    let strangers = Authority::new("another").issue(&["client"]);

    let mut daemon = setting.start(&[("tls.client-ca", &ca)]).await;
    daemon.client = setting.client(daemon.api(), Some(&mine));
    assert!(daemon.client.jobs().await.is_ok());
    for bad in [None, Some(&strangers)] {
        assert!(matches!(setting.client(daemon.api(), bad).jobs().await, Err(ClientError::Connection { .. })));
    }
    until("both are counted", async || metric(&daemon.client, &failures("certificate")).await >= 2.0).await;

    let optional = setting.start(&[("tls.client-ca", &ca), ("tls.client-auth", "optional")]).await;
    assert!(optional.client.jobs().await.is_ok());
    assert!(setting.client(optional.api(), Some(&mine)).jobs().await.is_ok());
    assert!(setting.client(optional.api(), Some(&strangers)).jobs().await.is_err());
}

#[tokio::test]
async fn one_door_may_speak_tls_alone() {
    let setting = Setting::new();
    let mut daemon = setting.start(&[("tls.doors", "s3")]).await;
    daemon.client = Client::new(&format!("http://{}", daemon.api()), None).unwrap();

    assert!(daemon.client.jobs().await.is_ok());
    assert_eq!(setting.shown(daemon.s3()).await, setting.issued.der);
}

#[tokio::test]
async fn who_does_not_shake_hands_in_time_is_cut() {
    let setting = Setting::new();
    let daemon = setting.start(&[("limits.head-timeout", "200 ms")]).await;

    for begin in [&b""[..], b"\x16\x03\x01"] {
        let mut raw = Raw::connect(daemon.s3()).await;
        raw.send(begin).await;
        assert!(raw.is_over().await);
    }
    until("both are counted", async || metric(&daemon.client, &failures("timeout")).await == 2.0).await;
    assert_eq!(metric(&daemon.client, "esker_rejected_total{reason=\"silent\"}").await, 2.0);
}

#[tokio::test]
async fn what_is_no_handshake_is_counted() {
    let setting = Setting::new();
    let daemon = setting.start(&[]).await;

    let mut raw = Raw::connect(daemon.s3()).await;
    raw.send(b"\x16\x03\x01\x00\x05hello").await;
    while raw.more().await {}
    let mut raw = Raw::connect(daemon.s3()).await;
    raw.send(b"\x16\x03").await;
    raw.finish().await;
    while raw.more().await {}

    until("one is no TLS", async || metric(&daemon.client, &failures("protocol")).await == 1.0).await;
    until("one ends early", async || metric(&daemon.client, &failures("broken")).await == 1.0).await;
}

/// What a start with these files says; it has to fail.
async fn start_error(setting: &Setting, more: &[(&str, &str)]) -> String {
    let own = [("tls.cert", setting.path("cert.pem")), ("tls.key", setting.path("key.pem"))];
    let own = own.into_iter().map(|(key, value)| (key.to_owned(), value));
    let more = more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let started = TestDaemon::try_start_on(tempfile::tempdir().unwrap(), own.chain(more).collect()).await;
    let Err((_, error)) = started else { panic!("it started") };
    assert!(error.is_refusal());
    error.to_string()
}

#[tokio::test]
async fn a_start_names_the_file_that_cannot_be_used() {
    let setting = Setting::new();
    let folder = setting.folder.path();
    let Issued { cert, key, .. } = &setting.issued;
    let expired = setting.authority.issue_expired(&NAMES);
    for (cert, key, named, why) in [
        ("junk", key.as_str(), "tls.cert", "no certificate"),
        (key, key, "tls.cert", "no certificate"),
        (&cert[..cert.len() / 2], key, "tls.cert", "not PEM"),
        (cert, "", "tls.key", "no private key"),
        (cert, cert, "tls.key", "no private key"),
        (cert, &expired.key, "tls.key", "not the key of the certificate"),
        (&expired.cert, &expired.key, "tls.cert", "expired at"),
    ] {
        put(folder, "cert.pem", cert);
        put(folder, "key.pem", key);

        let error = start_error(&setting, &[]).await;

        assert!(error.starts_with(&format!("{named} = ")) && error.contains(why), "{named} {why}: {error}");
    }
    setting.issued.write(folder);
    let error = start_error(&setting, &[("tls.client-ca", &setting.path("none.pem"))]).await;
    assert!(error.starts_with("tls.client-ca = ") && error.contains("cannot be read"), "{error}");
}

#[tokio::test]
async fn the_command_line_talks_to_a_door_with_tls() {
    let setting = Setting::new();
    let daemon = setting.start(&[]).await;
    let (api, ca) = (format!("https://{}", daemon.api()), setting.path("ca.pem"));
    let run = async |arguments: &[&str]| {
        let mut command = esker();
        command.args(["ls", "--api", &api]).args(arguments).env_remove("ESKER_CA");
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    };

    let trusting = run(&["--ca", &ca]).await;
    assert_eq!(trusting.status.code(), Some(0), "{}", String::from_utf8_lossy(&trusting.stderr));

    put(setting.folder.path(), "other.pem", &Authority::new("another").cert);
    let other = run(&["--ca", &setting.path("other.pem")]).await;
    let told = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(!other.status.success() && told.contains("name it as CA"), "{told}");
    assert_eq!(run(&["--ca", &setting.path("none.pem")]).await.status.code(), Some(2));
    assert_eq!(run(&["--ca", &setting.path("key.pem")]).await.status.code(), Some(2));
}

#[tokio::test]
async fn a_hangup_has_the_program_look_at_its_certificate() {
    let setting = Setting::new();
    let folder = setting.folder.path();
    let variable = |name, file: &str| (name, setting.path(file));
    let environment = [
        variable("ESKER__TLS__CERT", "cert.pem"),
        variable("ESKER__TLS__KEY", "key.pem"),
        ("ESKER__SERVER__RELOAD_INTERVAL", "0 s".to_owned()),
    ];
    let mut process = Process::spawn(folder, &environment);
    let ready = process.wait_ready();
    let s3: SocketAddr = ready.s3.strip_prefix("https://").expect("it says that it speaks TLS").parse().unwrap();
    assert_eq!(setting.shown(s3).await, setting.issued.der);

    let new = setting.authority.issue(&NAMES);
    new.write(folder);
    process.signal("HUP");

    until("the new one is shown", async || setting.shown(s3).await == new.der).await;
    process.terminate();
}

#[test]
fn a_check_of_the_configuration_looks_at_the_files() {
    use std::os::unix::fs::PermissionsExt;
    let setting = Setting::new();
    let check = |key: &Path| {
        let mut command = esker();
        command.args(["config", "check", "--set"]).arg(format!("tls.cert={}", setting.path("cert.pem")));
        command.arg("--set").arg(format!("tls.key={}", key.display()));
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let key = setting.folder.path().join("key.pem");

    assert_eq!(check(&key), (Some(0), "the configuration is good\n".to_owned()));
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
    let (code, told) = check(&key);
    assert!(code == Some(0) && told.contains("tls.key = ") && told.contains("chmod 600"), "{told}");
    let (code, told) = check(&setting.folder.path().join("ca.pem"));
    assert!(code == Some(2) && told.contains("tls.key = "), "{told}");
}
