//! Questions about the checkpoints of Apache Flink.

use bytes::{Bytes, BytesMut};
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Serialize;
use serde_json::Value;

use crate::client::{Client, part};
use crate::error::ClientError;
use crate::wire::{AuditPage, AuditParams, OrphanLine, OrphansParams};

/// Longest line that is believed, in bytes.
const LINE_BYTES_MAX: usize = 1 << 20;

impl Client {
    /// One page of the checkpoints that are there, compared with the objects that they name.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn audit(&self, params: &AuditParams) -> Result<AuditPage, ClientError> {
        self.json(self.request(Method::GET, &format!("/v1/audit?{}", query_of(params)?)), Bytes::new()).await
    }

    /// Objects of jobs that no checkpoint names, as they are found.
    ///
    /// # Errors
    /// [`ClientError`]; nothing arrived then.
    pub async fn orphans(&self, params: &OrphansParams) -> Result<OrphanLines, ClientError> {
        self.orphan_lines(Method::GET, params).await
    }

    /// The same; they are deleted.
    ///
    /// # Errors
    /// [`ClientError`]; nothing arrived then.
    pub async fn delete_orphans(&self, params: &OrphansParams) -> Result<OrphanLines, ClientError> {
        self.orphan_lines(Method::POST, params).await
    }

    async fn orphan_lines(&self, method: Method, params: &OrphansParams) -> Result<OrphanLines, ClientError> {
        let request = self.request(method, &format!("/v1/orphans?{}", query_of(params)?));
        let body = self.begin_send(request, Bytes::new()).await?.1;
        Ok(OrphanLines { body, arrived: BytesMut::new(), ended: false })
    }
}

/// The answer to a question about orphans while it arrives.
#[derive(Debug)]
pub struct OrphanLines {
    body: Incoming,
    arrived: BytesMut,
    ended: bool,
}

impl OrphanLines {
    /// The next line; `None` after the last, [`OrphanLine::End`].
    ///
    /// # Errors
    /// [`ClientError::Answer`] if the answer ends before that, or cannot be read.
    pub async fn next(&mut self) -> Result<Option<OrphanLine>, ClientError> {
        if self.ended {
            return Ok(None);
        }
        let mut looked_at = 0;
        let end = loop {
            if let Some(end) = self.arrived[looked_at..].iter().position(|byte| *byte == b'\n') {
                break looked_at + end;
            }
            looked_at = self.arrived.len();
            if looked_at > LINE_BYTES_MAX {
                return Err(ClientError::Answer(format!("a line has more than {LINE_BYTES_MAX} bytes")));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.arrived.extend_from_slice(&frame.into_data().unwrap_or_default()),
                Some(Err(error)) => return Err(ClientError::Answer(format!("it broke off: {error}"))),
                None => return Err(ClientError::Answer("it ends too early".to_owned())),
            }
        };
        let line = self.arrived.split_to(end + 1);
        match serde_json::from_slice(&line).map_err(|error| ClientError::Answer(error.to_string()))? {
            OrphanLine::Broken(why) => Err(ClientError::Answer(format!("it broke off: {why}"))),
            line => {
                self.ended = matches!(line, OrphanLine::End(_));
                Ok(Some(line))
            }
        }
    }
}

/// Writes the fields that are given as a query.
fn query_of(params: &impl Serialize) -> Result<String, ClientError> {
    let params = serde_json::to_value(params).map_err(|error| ClientError::Request(error.to_string()))?;
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let fields = params.as_object().into_iter().flatten();
    Ok(fields.map(|(name, value)| format!("{name}={}", part(&text(value)))).collect::<Vec<_>>().join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_has_the_fields_that_are_given() {
        let params = AuditParams {
            prefix: Some("a&b/ü".to_owned()),
            limit: Some(3),
            names: Some(true),
            ..AuditParams::default()
        };

        let query = query_of(&params).unwrap();
        let mut fields: Vec<&str> = query.split('&').collect();
        fields.sort_unstable();
        assert_eq!(fields, ["limit=3", "names=true", "prefix=a%26b%2F%C3%BC"]);
        assert_eq!(query_of(&AuditParams::default()).unwrap(), "");
    }
}
