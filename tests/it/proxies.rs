//! What a client is told whose signature does not match because of a proxy on the way: here the change is made by hand.

use std::net::SocketAddr;

use crate::daemon::TestDaemon;
use crate::http2::ask_http2;
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

/// The same over HTTP/2, where the host is no header.
async fn told_http2(address: SocketAddr, signed: (&str, &str), came: (&str, &str), more: &[(&str, &str)]) -> String {
    let signer = S3Signer::new(address, "k", "s");
    let request = signer.request("GET", signed.1, &format!("host: {}\naccept-encoding: gzip", signed.0), b"");
    let request = String::from_utf8(request).unwrap();
    let headers = request.lines().skip(1).filter_map(|line| line.split_once(": "));
    let headers = headers.filter(|(name, _)| !["host", "content-length"].contains(name));
    let changed = |name: &str| more.iter().any(|(other, _)| *other == name);
    let headers: Vec<_> = headers.filter(|(name, _)| !changed(name)).chain(more.iter().copied()).collect();

    let (status, body) = ask_http2(address, "GET", came, &headers).await;

    let text = String::from_utf8(body.to_vec()).unwrap();
    assert!(status == 403 && text.contains("<Code>SignatureDoesNotMatch</Code>"), "{status}: {text}");
    text.replace("&quot;", "\"")
}

#[tokio::test]
async fn a_change_is_named_over_http_2_too() {
    let daemon = TestDaemon::start(&KEYS).await;
    let address = daemon.s3();
    let (was, forwarded) = ("s3.example.com", ("x-forwarded-host", "s3.example.com"));
    let path = "/checkpoints/a";

    let host = told_http2(address, (was, path), ("esker:9000", path), &[forwarded]).await;
    assert!(host.contains("for the host \"s3.example.com\"") && host.contains("esker:9000"), "{host}");
    let slashes = told_http2(address, (was, "/checkpoints//a"), (was, path), &[]).await;
    assert!(slashes.contains("for the path \"/checkpoints//a\""), "{slashes}");
    let query = told_http2(address, (was, path), (was, "/checkpoints/a?tracking=1"), &[]).await;
    assert!(query.contains("for the query") && query.contains("tracking=1"), "{query}");
    let encoding = told_http2(address, (was, path), (was, path), &[("accept-encoding", "br")]).await;
    assert!(encoding.contains("accept-encoding: gzip") && encoding.contains("br"), "{encoding}");
    let nothing = told_http2(address, (was, path), ("esker:9000", path), &[]).await;
    assert!(nothing.contains("esker:9000") && nothing.contains("changed on the way"), "{nothing}");
}

#[tokio::test]
async fn a_change_of_a_presigned_address_is_named() {
    let daemon = TestDaemon::start(&KEYS).await;
    let address = daemon.s3();
    let own = address.to_string();
    let own = own.as_str();
    let target = S3Signer::new(address, "k", "s").presigned("GET", "checkpoints", "a b").await;
    assert!(target.starts_with("/checkpoints/a%20b?"), "{target}");
    let twice = target.replacen("a%20b", "a%2520b", 1);
    let added = format!("{target}&utm_source=mail");
    for (method, host, target, more, words) in [
        ("GET", "esker", &target, format!("x-forwarded-host: {own}\r\n"), format!("for the host &quot;{own}&quot;")),
        ("GET", own, &twice, String::new(), "for the path &quot;/checkpoints/a%20b&quot;".to_owned()),
        ("GET", own, &added, String::new(), "came with &quot;utm_source=mail&quot;".to_owned()),
        ("PUT", own, &target, String::new(), "for the method GET, and the request came as PUT".to_owned()),
    ] {
        let request = format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\n{more}\r\n");
        let first = ask(address, request).await;
        assert_eq!(first.status, 403, "{}", first.text());
        let more = more.trim().split_once(": ");
        let (status, second) = ask_http2(address, method, (host, target), more.as_slice()).await;
        assert_eq!(status, 403);

        for text in [first.text(), String::from_utf8(second.to_vec()).unwrap()] {
            let plain = text.replace('"', "&quot;");
            assert!(plain.contains(&words), "{method} {host} {target}: {text}");
            assert!(!plain.contains("X-Amz-Signature"), "{text}");
        }
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
