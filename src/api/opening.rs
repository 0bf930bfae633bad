//! A door before there is a daemon behind it.

use std::sync::{Arc, OnceLock};

use hyper::service::Service;

/// A service in whose place another one comes, for connections that are already open, too. Clones change together.
#[derive(Debug, Clone)]
pub struct Opening<S> {
    first: S,
    then: Arc<OnceLock<S>>,
}

impl<S> Opening<S> {
    /// `first`, until it is opened.
    pub fn new(first: S) -> Self {
        Self { first, then: Arc::default() }
    }

    /// From here on `then` answers. Requests that `first` has begun with end there.
    pub fn open(&self, then: S) {
        // A second time would change nothing: a door opens once.
        drop(self.then.set(then));
    }
}

impl<R, S: Service<R>> Service<R> for Opening<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, request: R) -> S::Future {
        self.then.get().unwrap_or(&self.first).call(request)
    }
}
