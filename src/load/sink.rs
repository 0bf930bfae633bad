//! The baseline: an HTTP server that drains bodies, stores nothing, and answers 200.
//!
//! It uses the same HTTP library as the daemon, with the same read buffer, and nothing else: no routing, no checksum.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Bytes of a connection's read buffer, as the daemon has them.
const READ_BUFFER_BYTES: usize = 64 << 10;

/// Serves connections until it is dropped.
///
/// # Errors
/// When no more connections can be accepted.
pub async fn serve(listener: TcpListener) -> std::io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        while connections.try_join_next().is_some() {}
        #[expect(clippy::disallowed_methods, reason = "the connections end with the server, which owns them")]
        connections.spawn(async move {
            let mut server = http1::Builder::new();
            let serving =
                server.max_buf_size(READ_BUFFER_BYTES).serve_connection(TokioIo::new(stream), service_fn(drain));
            // A client that leaves in the middle is none of the sink's business.
            drop(serving.await);
        });
    }
}

async fn drain(request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, Infallible> {
    let mut body = request.into_body();
    while let Some(Ok(_)) = body.frame().await {}
    Ok(Response::new(Empty::new()))
}
