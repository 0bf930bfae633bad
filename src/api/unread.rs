//! Requests that are answered with an error before their body was read.
//!
//! The rest of such a body must not be taken for the next request, and closing a connection on which bytes are arriving
//! throws the answer away before the client reads it. So a body of ordinary size is read to its end and dropped, piece by
//! piece, before the error is sent, and the connection stays open; with a longer or slower one the answer says `Connection:
//! close`. A client that waits for `100 Continue` has sent nothing yet: it is told to close.
//!
//! HTTP/2 ends the one stream by itself.
//!
//! All that happens to a request happens with the connection as its payer, and the connection's [`Peer`] knows of the
//! request and of its body until both that and the answer are through.

use std::error::Error as StdError;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use http::header::{CONNECTION, EXPECT};
use http::{HeaderName, HeaderValue, Request, Response, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::Service;
use parking_lot::Mutex;

use super::exchange::{Exchange, Exchanges};
use super::peers::answer::AnswerBody;
use super::peers::flow::Flow;
use super::peers::{Busy, Peer};
use crate::config::LimitsSettings;
use crate::runtime::{Payer, Share};

/// Bytes of a refused body that are read and dropped at most: more than a whole physical file by default.
const DROPPED_BYTES_MAX: u64 = 64 << 20;
/// Longest time for that.
const DROPPED_WITHIN: Duration = Duration::from_secs(5);

/// Names the request in an answer of the native API.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The body of a request; what its reader leaves can still be read by the connection.
#[derive(Debug)]
pub struct RequestBody {
    incoming: Arc<Mutex<SharedBody>>,
}

#[derive(Debug)]
struct SharedBody {
    body: Incoming,
    /// Whether anybody has asked for bytes, and so for `100 Continue` to be sent.
    asked: bool,
    /// Whether whoever asked last was still waiting for them.
    stalled: bool,
    flow: Arc<Flow>,
    exchange: Exchange,
    _busy: Busy,
}

/// Why a body has no further bytes.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection failed, or what it brought is not HTTP.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
    /// The client sends less than `limits.rate-min`.
    #[error("the body comes in too slowly")]
    Slow,
}

impl BodyError {
    /// Whether an error is, or comes from, a body that came in too slowly.
    pub fn is_slow(error: &(dyn StdError + 'static)) -> bool {
        matches!(error.downcast_ref(), Some(Self::Slow)) || error.source().is_some_and(Self::is_slow)
    }
}

impl SharedBody {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.asked = true;
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        self.stalled = frame.is_pending();
        let len = |frame: &Frame<Bytes>| frame.data_ref().map_or(0, Bytes::len) as u64;
        match frame {
            Poll::Ready(frame) => {
                let bytes = frame.as_ref().and_then(|frame| frame.as_ref().ok()).map_or(0, len);
                self.flow.asked(Some(bytes));
                self.exchange.received(bytes);
                Poll::Ready(frame.map(|frame| frame.map_err(BodyError::from)))
            }
            Poll::Pending => {
                self.flow.asked(None);
                self.flow.poll_given_up(cx).map(|()| Some(Err(BodyError::Slow)))
            }
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.incoming.lock().poll(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.lock().body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.lock().body.size_hint()
    }
}

/// The service of one connection, whose errors leave it in order.
#[derive(Debug, Clone)]
pub struct Orderly<S> {
    inner: S,
    peer: Arc<Peer>,
    exchanges: Exchanges,
    bytes_per_second_min: u64,
    window: Duration,
}

impl<S> Orderly<S> {
    /// `inner`, and order.
    pub fn new(inner: S, peer: Arc<Peer>, exchanges: Exchanges, limits: &LimitsSettings) -> Self {
        Self { inner, peer, exchanges, bytes_per_second_min: limits.rate_bytes_min, window: limits.rate_window }
    }
}

impl<S, B> Service<Request<Incoming>> for Orderly<S>
where
    S: Service<Request<RequestBody>, Response = Response<B>>,
    S::Future: Send + 'static,
    B: Send,
{
    type Response = Response<AnswerBody<B>>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<AnswerBody<B>>, S::Error>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let one_at_a_time = request.version() <= Version::HTTP_11;
        let waits = request.headers().contains_key(EXPECT);
        let (mut head, body) = request.into_parts();
        let exchange = self.exchanges.begin(&head.method, &head.headers, self.peer.address());
        let named = self.exchanges.name_answers();
        let (busy, flow) = (self.peer.begin(!one_at_a_time), Arc::new(Flow::arriving(self.window)));
        if !body.is_end_stream() {
            self.peer.add(&flow);
        }
        let payer = match self.peer.is_trusted() {
            true => Payer::new(Share::new(u64::MAX)),
            false => Payer::new(self.peer.share().clone()),
        };
        let (answering, rate, window) = (busy.clone(), self.bytes_per_second_min, self.window);
        let incoming = Arc::new(Mutex::new(SharedBody {
            body,
            asked: false,
            stalled: false,
            flow,
            exchange: exchange.clone(),
            _busy: busy,
        }));
        head.extensions.insert(Arc::clone(&self.peer));
        let request = Request::from_parts(head, RequestBody { incoming: Arc::clone(&incoming) });
        // Some services begin before they are polled.
        let answer = exchange.sync_scope(|| self.inner.call(request));
        let reserved = self.peer.is_reserved();
        Box::pin(async move {
            let mut answer = exchange.scope(payer.scope(answer)).await?;
            exchange.answered(answer.status());
            if named && let Ok(id) = HeaderValue::from_str(exchange.id()) {
                answer.headers_mut().insert(REQUEST_ID, id);
            }
            let refused = answer.status().is_client_error() || answer.status().is_server_error();
            let in_order = !one_at_a_time || !refused || in_order(&incoming, waits).await;
            if !in_order || (one_at_a_time && reserved) {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(answer.map(|body| match one_at_a_time {
                true => AnswerBody::alone(body, payer, exchange, answering),
                false => AnswerBody::beside_others(body, payer, exchange, answering, rate, window),
            }))
        })
    }
}

/// Whether the next request can follow on the same connection.
async fn in_order(incoming: &Mutex<SharedBody>, waits: bool) -> bool {
    let hopeless = {
        let shared = incoming.lock();
        if shared.body.is_end_stream() {
            return true;
        }
        shared.stalled || (waits && !shared.asked) || shared.body.size_hint().lower() > DROPPED_BYTES_MAX
    };
    let frames = stream::poll_fn(|cx| incoming.lock().poll(cx));
    !hopeless && drop_rest(frames.map_ok(|frame| frame.into_data().unwrap_or_default())).await
}

/// Reads and drops what is left of a body. False if that is too much, too slow, or breaks off.
pub(super) async fn drop_rest<E>(mut body: impl Stream<Item = Result<Bytes, E>> + Unpin) -> bool {
    let reading = async {
        let mut dropped = 0;
        while let Some(piece) = body.next().await {
            let Ok(piece) = piece else { return false };
            dropped += piece.len() as u64;
            if dropped > DROPPED_BYTES_MAX {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(DROPPED_WITHIN, reading).await.unwrap_or(false)
}
