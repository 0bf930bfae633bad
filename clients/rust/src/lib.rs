//! Client of Esker's native API.
//!
//! Esker keeps the state of stream workers: many small segments, packed into large files on S3 or local disk, each
//! answered once it is durable. A [`Client`] talks to one daemon; it is cheap to clone, and clones share connections.
//!
//! ```no_run
//! use esker_client::wire::PutParams;
//! use esker_client::{Client, ClientError};
//!
//! # async fn run() -> Result<(), ClientError> {
//! let client = Client::new("http://127.0.0.1:9001", None)?;
//! client.create_job("wordcount").await?;
//! client.begin("wordcount", 1).await?;
//! let params = PutParams { checkpoint: Some(1), name: Some("sum".to_owned()), ..PutParams::default() };
//! let stored = client.put("wordcount", &params, Some("1-sum-0"), "42".into()).await?;
//! client.complete("wordcount", 1).await?;
//!
//! assert_eq!(client.get(&stored.segment).await?, "42");
//! # Ok(())
//! # }
//! ```
//!
//! - [`Client`]: the requests.
//! - [`ClientOptions`]: token, timeouts, whom to trust.
//! - [`Worker`]: a task of a job whose checkpoints the daemon coordinates.
//! - [`Restore`]: many segments in one answer, as they arrive.
//! - [`OrphanLines`]: objects of Flink's jobs that no checkpoint names, as they are found.
//! - [`wire`]: what the API's JSON looks like.
//! - [`ClientError`]: why a request failed, and whether and when to send it again.
//!
//! # Bytes
//! Every segment is sent with its CRC-32C, and what is read as a whole is checked against the daemon's. A range is not
//! checked here, but the daemon checks what it reads for it.
//!
//! # Repeating
//! Nothing is repeated behind the caller's back. Whoever repeats waits for [`ClientError::retry_after`], and asks
//! [`ClientError::is_transient`] first; a put with an idempotency key may be sent again after any error, any other one may
//! be stored twice, which costs space and nothing else.
//!
//! # Cancel safety
//! A future may be dropped at any time. Whether its request is carried out is not known then.

mod audit;
mod client;
mod connect;
mod coordinator;
mod ended;
mod error;
mod lifecycle;
mod restore;
mod tls;
pub mod wire;
mod worker;

pub use audit::OrphanLines;
pub use client::{Client, ClientOptions};
pub use connect::Timeouts;
pub use error::ClientError;
pub use restore::Restore;
pub use tls::TlsOptions;
pub use worker::{Worker, WorkerEvent};
