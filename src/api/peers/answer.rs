//! The body of an answer: what it takes is paid for by whom it goes to, and with HTTP/2 it is seen whether it is taken.
//!
//! With HTTP/1 the socket tells: all that it takes belongs to the one answer. With HTTP/2 a client may keep one answer
//! waiting and read another, so each tells by itself: its bytes go out in small pieces, and a piece that was written is
//! dropped.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::Busy;
use super::flow::Flow;
use crate::api::exchange::Exchange;
use crate::runtime::Payer;

/// The most that HTTP/2 puts into one frame by default.
const PIECE_BYTES_MAX: u64 = 16 << 10;
const PIECE_BYTES_MIN: u64 = 1 << 10;

/// The body of an answer.
pub struct AnswerBody<B> {
    body: B,
    payer: Payer,
    exchange: Exchange,
    pieces: Option<AnswerPieces>,
    /// The connection is busy until the body is out.
    _busy: Busy,
}

crate::runtime::opaque_debug!(AnswerBody<B>);

struct AnswerPieces {
    flow: Arc<Flow>,
    rest: Bytes,
    bytes_max: usize,
}

impl<B> AnswerBody<B> {
    /// `body`, whose connection has no other answer.
    pub fn alone(body: B, payer: Payer, exchange: Exchange, busy: Busy) -> Self {
        Self { body, payer, exchange, pieces: None, _busy: busy }
    }

    /// `body`, which leaves beside others. Its pieces are smaller than what has to leave within half a `window`.
    pub fn beside_others(
        body: B,
        payer: Payer,
        exchange: Exchange,
        busy: Busy,
        bytes_per_second: u64,
        window: Duration,
    ) -> Self {
        let flow = Arc::new(Flow::leaving(window));
        busy.peer().add(&flow);
        let half = bytes_per_second.saturating_mul(window.as_secs()) / 2;
        let bytes_max = half.clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX) as usize;
        Self { body, payer, exchange, pieces: Some(AnswerPieces { flow, rest: Bytes::new(), bytes_max }), _busy: busy }
    }

    fn left(&self) -> usize {
        self.pieces.as_ref().map_or(0, |pieces| pieces.rest.len())
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for AnswerBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.left() == 0 {
            let Self { body, payer, exchange, .. } = &mut *self;
            let frame = ready!(exchange.sync_scope(|| payer.sync_scope(|| Pin::new(body).poll_frame(cx))));
            if let Some(Ok(frame)) = &frame {
                exchange.sent(frame.data_ref().map_or(0, Bytes::len) as u64);
            }
            let Some(pieces) = &mut self.pieces else { return Poll::Ready(frame) };
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => pieces.rest = data,
                Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        Poll::Ready(self.pieces.as_mut().map(|pieces| Ok(Frame::data(pieces.next()))))
    }

    fn is_end_stream(&self) -> bool {
        self.left() == 0 && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (left, inner) = (self.left() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + left);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + left);
        }
        hint
    }
}

impl AnswerPieces {
    fn next(&mut self) -> Bytes {
        let bytes = self.rest.split_to(self.rest.len().min(self.bytes_max));
        self.flow.handed_out(bytes.len() as u64);
        Bytes::from_owner(PieceInFlight { bytes, flow: Arc::clone(&self.flow) })
    }
}

/// A piece that the peer has yet to take.
struct PieceInFlight {
    bytes: Bytes,
    flow: Arc<Flow>,
}

impl AsRef<[u8]> for PieceInFlight {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for PieceInFlight {
    fn drop(&mut self) {
        self.flow.taken(self.bytes.len() as u64);
    }
}
