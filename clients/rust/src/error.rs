//! Why a request failed.

use std::time::Duration;

use http::{HeaderMap, StatusCode, header};

use crate::wire::{ErrorBody, ErrorKind};

/// An error of some library.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is not one.
    #[error("the address {0:?} must be http://HOST:PORT, https://HOST:PORT or unix:PATH")]
    Address(String),
    /// What the client is to trust, or to be, cannot be used.
    #[error("TLS: {0}")]
    Tls(String),
    /// The request cannot be sent as it is.
    #[error("the request cannot be sent: {0}")]
    Request(String),
    /// No answer came; whether the request was carried out is not known.
    #[error("no answer from {address}")]
    Connection {
        /// The daemon's address.
        address: String,
        /// The error underneath.
        #[source]
        source: BoxError,
    },
    /// The daemon answered with an error.
    #[error("{status}: {message}")]
    Refused {
        /// Its status.
        status: StatusCode,
        /// The next step for the caller.
        kind: ErrorKind,
        /// The field of the request that is wrong, if the daemon names one.
        field: Option<String>,
        /// The daemon's sentence.
        message: String,
        /// When to come back, if it says so.
        retry_after: Option<Duration>,
    },
    /// The answer is not what the API says.
    #[error("the answer cannot be read: {0}")]
    Answer(String),
    /// The bytes that arrived are not those that were stored.
    #[error("the bytes have CRC-32C {actual:08x}, the daemon announced {announced}")]
    Checksum {
        /// The checksum that the daemon announced.
        announced: String,
        /// The checksum of the bytes that arrived.
        actual: u32,
    },
    /// The answer to a restore is not whole.
    #[error("the restore broke off after {whole} segments, at {}: {message}", .segment.as_deref().unwrap_or("the next one"))]
    BrokenOff {
        /// Number of segments that arrived whole.
        whole: u64,
        /// The segment that did not, if the daemon lived to say which.
        segment: Option<String>,
        /// A sentence about it.
        message: String,
        /// The error underneath, if it was the connection.
        #[source]
        source: Option<BoxError>,
    },
}

impl ClientError {
    /// The status, if the daemon answered.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Returns what the daemon says should be done next, if it answered.
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Refused { kind, .. } => Some(*kind),
            _ => None,
        }
    }

    /// For how long the daemon wants to be left alone, if it says so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether no connection came about: the daemon has seen nothing of the request.
    pub fn is_unreached(&self) -> bool {
        let Self::Connection { source, .. } = self else { return false };
        source.downcast_ref::<hyper_util::client::legacy::Error>().is_some_and(|error| error.is_connect())
    }

    /// Whether the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Connection { .. }) || self.status() == Some(StatusCode::SERVICE_UNAVAILABLE)
    }

    /// Reads the answer that reports an error. An answer that is not the daemon's own is told as it is.
    pub(crate) fn refused(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let seconds = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let retry_after = seconds.map(Duration::from_secs);
        match serde_json::from_slice::<ErrorBody>(body).map(|body| body.error) {
            Ok(error) => {
                Self::Refused { status, kind: error.kind, field: error.field, message: error.message, retry_after }
            }
            Err(_) => {
                let message = String::from_utf8_lossy(body).trim().to_owned();
                Self::Refused { status, kind: ErrorKind::Unknown, field: None, message, retry_after }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str, retry_after: &'static str) -> ClientError {
        let headers = HeaderMap::from_iter([(header::RETRY_AFTER, http::HeaderValue::from_static(retry_after))]);
        ClientError::refused(StatusCode::SERVICE_UNAVAILABLE, &headers, body.as_bytes())
    }

    #[test]
    fn an_error_of_the_daemon_tells_its_kind_its_field_and_when_to_come_back() {
        let error = refused(r#"{"error":{"kind":"shutting_down","field":"job","message":"m"}}"#, "7");

        assert_eq!((error.kind(), error.retry_after()), (Some(ErrorKind::ShuttingDown), Some(Duration::from_secs(7))));
        assert!(error.is_transient() && matches!(&error, ClientError::Refused { field: Some(f), .. } if f == "job"));
        assert_eq!(error.to_string(), "503 Service Unavailable: m");
    }

    #[test]
    fn an_error_of_something_else_is_told_as_it_is() {
        let error = refused("upstream is down\n", "Fri, 31 Dec 1999 23:59:59 GMT");

        assert_eq!((error.kind(), error.retry_after()), (Some(ErrorKind::Unknown), None));
        assert_eq!(error.to_string(), "503 Service Unavailable: upstream is down");
    }

    #[test]
    fn a_kind_of_a_later_version_is_unknown() {
        let error = refused(r#"{"error":{"kind":"bored","message":"m"}}"#, "1");

        assert_eq!(error.kind(), Some(ErrorKind::Unknown));
        assert_eq!(error.to_string(), "503 Service Unavailable: m");
    }
}
