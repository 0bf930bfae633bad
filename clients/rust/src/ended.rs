//! Requests whose connection is gone.
//!
//! hyper hands a request over to the task of its connection through a channel. One that is handed over in the moment in which
//! that task ends can be left in the channel, and is then answered by nobody, not even with an error: its caller would wait for
//! ever. So the socket says when it is gone, and no answer comes after that.

use std::time::Duration;

use http::{Extensions, Request};
use hyper_util::client::legacy::connect::{CaptureConnection, Connected, capture_connection};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::error::BoxError;

/// What had arrived before, or why it ended, is told by hyper; that takes no time, but another thread may have to do it.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Held by a socket for as long as it is there.
#[derive(Debug)]
pub(crate) struct Living(watch::Sender<()>);

impl Living {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(()))
    }

    /// Describes a connection, so that requests which it takes know of its end.
    pub(crate) fn describe(&self) -> Connected {
        Connected::new().extra(ConnectionEnd(self.0.subscribe()))
    }
}

/// The end of a connection.
#[derive(Debug, Clone)]
struct ConnectionEnd(watch::Receiver<()>);

impl ConnectionEnd {
    fn of(connected: &Connected) -> Option<Self> {
        let mut extras = Extensions::new();
        connected.get_extras(&mut extras);
        extras.remove()
    }

    async fn reached(&mut self) {
        while self.0.changed().await.is_ok() {}
    }
}

/// The connection that a request goes to; it may go to another one if the first is closed before it takes it.
pub(crate) struct GoesTo(CaptureConnection);

impl GoesTo {
    pub(crate) fn of<B>(request: &mut Request<B>) -> Self {
        Self(capture_connection(request))
    }

    /// Resolves when the connection has been gone for a while.
    pub(crate) async fn ended(mut self) -> BoxError {
        loop {
            let end = self.0.wait_for_connection_metadata().await.as_ref().and_then(ConnectionEnd::of);
            let Some(mut end) = end else { std::future::pending().await };
            end.reached().await;
            sleep(LAST_WORD).await;
            let now = self.0.connection_metadata().as_ref().and_then(ConnectionEnd::of);
            if now.is_some_and(|now| now.0.same_channel(&end.0)) {
                return "the connection ended without an answer".into();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_connection_is_known_to_what_it_took() {
        let living = Living::new();
        let mut end = ConnectionEnd::of(&living.describe()).unwrap();

        let early = tokio::time::timeout(Duration::from_secs(60), end.reached()).await;
        assert!(early.is_err(), "it is there");
        drop(living);
        end.reached().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_never_had_a_connection_is_left_to_hyper() {
        let mut request = Request::new(());
        let goes_to = GoesTo::of(&mut request);

        assert!(tokio::time::timeout(Duration::from_secs(60), goes_to.ended()).await.is_err());
    }
}
