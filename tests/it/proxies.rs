//! What a client is told whose signature does not match because of a proxy on the way: here the change is made by hand.

use std::net::SocketAddr;

use crate::daemon::TestDaemon;
use crate::raw::ask;
use crate::support::signed::S3Signer;

const KEYS: [(&str, &str); 2] = [("auth.access-key", "k"), ("auth.secret-key", "s")];

/// What the door says to a request that was signed for one host and target, and comes with others.
async fn told(address: SocketAddr, signed: (&str, &str), came: (&str, &str), more: &str) -> String {
    let signer = S3Signer::new(address, "k", "s");
    let request = signer.request("GET", signed.1, &format!("host: {}", signed.0), b"");
    let request = String::from_utf8(request).unwrap();
    let (line, host) = (format!("GET {} HTTP/1.1\r\n", signed.1), format!("host: {}\r\n", signed.0));
    assert!(request.contains(&line) && request.contains(&host), "{request}");
    let request = request.replace(&line, &format!("GET {} HTTP/1.1\r\n", came.1));
    let request = request.replace(&host, &format!("host: {}\r\n{more}", came.0));
    let answer = ask(address, request).await;
    assert_eq!(answer.status, 403, "{}", answer.text());
    assert!(answer.text().contains("<Code>SignatureDoesNotMatch</Code>"), "{}", answer.text());
    answer.text()
}

#[tokio::test]
async fn a_host_that_was_changed_is_named() {
    let daemon = TestDaemon::start(&[&KEYS[..], &[("server.virtual-host-domains", "s3.local")]].concat()).await;
    let address = daemon.s3();
    for (was, came, more) in [
        ("s3.example.com", "127.0.0.1:9000", "x-forwarded-host: s3.example.com\r\n"),
        ("s3.example.com:8443", "esker", "x-forwarded-host: s3.example.com\r\nx-forwarded-port: 8443\r\n"),
        ("s3.example.com", "esker", "forwarded: for=1.2.3.4;host=s3.example.com\r\n"),
        ("localhost:8080", "localhost", ""),
        ("localhost", "localhost:80", ""),
        ("s3.local", "esker", ""),
    ] {
        let told = told(address, (was, "/checkpoints?list-type=2"), (came, "/checkpoints?list-type=2"), more).await;

        assert!(
            told.contains(was) && told.contains(came) && told.contains("proxy_set_header Host"),
            "{was} {came}: {told}"
        );
    }
}

#[tokio::test]
async fn a_path_that_was_changed_is_named() {
    let daemon = TestDaemon::start(&KEYS).await;
    let address = daemon.s3();
    for (was, came) in [
        ("/checkpoints/a//b", "/checkpoints/a/b"),
        ("/checkpoints//a/b", "/checkpoints/a/b"),
        ("/checkpoints/a%20b", "/checkpoints/a%2520b"),
        ("/checkpoints/dir/", "/checkpoints/dir"),
    ] {
        let told = told(address, ("localhost", was), ("localhost", came), "").await;

        assert!(told.contains(was) && told.contains("merge_slashes"), "{was} {came}: {told}");
    }
}

#[tokio::test]
async fn what_cannot_be_found_out_is_told_as_it_came_and_another_secret_finds_nothing() {
    let daemon = TestDaemon::start(&KEYS).await;
    let address = daemon.s3();

    let text = told(address, ("nobody.knows", "/checkpoints/x"), ("127.0.0.1", "/checkpoints/x"), "").await;
    assert!(text.contains("127.0.0.1") && text.contains("changed on the way"), "{text}");

    let stranger = S3Signer::new(address, "k", "another");
    let answer = ask(address, stranger.request("GET", "/checkpoints/x", "", b"")).await;
    assert_eq!(answer.status, 403);
    assert!(answer.text().contains("the secret key is another one"), "{}", answer.text());
}

#[tokio::test]
async fn what_was_not_changed_matches() {
    let daemon = TestDaemon::start(&KEYS).await;
    let signer = S3Signer::new(daemon.s3(), "k", "s");
    for (put, get) in [("/checkpoints/a//b", "/checkpoints/a//b"), ("/checkpoints/a+b", "/checkpoints/a%2Bb")] {
        assert_eq!(ask(daemon.s3(), signer.request("PUT", put, "", b"x")).await.status, 200, "{put}");
        assert_eq!(ask(daemon.s3(), signer.request("GET", get, "", b"")).await.text(), "x", "{get}");
    }
}
