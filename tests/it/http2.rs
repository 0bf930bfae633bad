//! The S3 door over HTTP/2, where a body that should not be there is an error of the protocol.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::daemon::TestDaemon;
use crate::raw::{ask, request};

/// The status and the body of one request on a connection of its own. `host` goes into `:authority`.
pub async fn ask_http2(
    address: SocketAddr,
    method: &str,
    (host, path): (&str, &str),
    more: &[(&str, &str)],
) -> (StatusCode, Bytes) {
    let stream = TcpStream::connect(address).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    let driven = tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(format!("http://{host}{path}"));
    for (name, value) in more {
        request = request.header(*name, *value);
    }
    let answer = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    let status = answer.status();
    let body = answer.into_body().collect().await.expect("the protocol is kept").to_bytes();
    drop(sender);
    driven.await.unwrap().expect("the connection ends well");
    (status, body)
}

#[tokio::test]
async fn answers_without_a_body_have_none() {
    let daemon = TestDaemon::start(&[]).await;
    let address = daemon.s3();
    let host = address.to_string();
    assert_eq!(ask(address, request("PUT", "/bucket", "", b"")).await.status, 200);
    let put = ask(address, request("PUT", "/bucket/key", "", b"0123456789")).await;
    let etag = put.header("etag").unwrap().to_owned();

    for (method, path, more, status) in [
        ("HEAD", "/bucket/key", ("accept", "*/*"), 200),
        ("HEAD", "/bucket/key", ("range", "bytes=1-2"), 206),
        ("HEAD", "/bucket/none", ("accept", "*/*"), 404),
        ("HEAD", "/no-such-bucket", ("accept", "*/*"), 404),
        ("HEAD", "/bucket/key", ("if-none-match", etag.as_str()), 304),
        ("HEAD", "/bucket/key", ("if-match", "\"x\""), 412),
        ("HEAD", "/bucket/key", ("range", "bytes=99-"), 416),
        ("GET", "/bucket/key", ("if-none-match", etag.as_str()), 304),
    ] {
        let (got, body) = ask_http2(address, method, (&host, path), &[more]).await;

        assert_eq!((got.as_u16(), &body[..]), (status, &b""[..]), "{method} {path} {more:?}");
    }
    let (status, body) = ask_http2(address, "GET", (&host, "/bucket/none"), &[]).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(body.starts_with(b"<?xml"), "{body:?}");
}
