//! HTTP/1.1 by hand: what no decent client would send, and every byte that comes back.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Nothing in these tests takes this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection.
pub struct Raw {
    stream: TcpStream,
    received: Vec<u8>,
}

/// An answer as it was sent.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The kind and the field of an error of the native API.
    pub fn error(&self) -> (String, String) {
        let json: serde_json::Value =
            serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no error of ours: {}", self.text()));
        let text = |key: &str| json["error"][key].as_str().unwrap_or_default().to_owned();
        assert!(!text("message").is_empty(), "{json}");
        (text("kind"), text("field"))
    }
}

impl Raw {
    pub async fn connect(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap(), received: vec![] }
    }

    /// Sends bytes; the other side may have closed, what it said can still be read.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        drop(tokio::time::timeout(PATIENCE, self.stream.write_all(bytes.as_ref())).await.expect("bytes are not taken"));
    }

    /// Says that nothing more will be sent.
    pub async fn finish(&mut self) {
        drop(self.stream.shutdown().await);
    }

    /// The next answer, interim ones too; none if the connection ends before it.
    pub async fn answer(&mut self) -> Option<Answer> {
        let head_len = loop {
            if let Some(at) = self.received.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.more().await {
                return None;
            }
        };
        let head: Vec<u8> = self.received.drain(..head_len).collect();
        let (status, headers) = parse_head(&String::from_utf8(head).unwrap());
        let mut answer = Answer { status, headers, body: vec![] };
        let len = answer.header("content-length").map(|len| len.parse::<usize>().unwrap());
        if answer.header("transfer-encoding").is_some() {
            answer.body = self.chunks().await?;
        } else if status >= 200 && status != 204 {
            let len = len.expect("an answer has a length");
            while self.received.len() < len && self.more().await {}
            answer.body = self.received.drain(..len.min(self.received.len())).collect();
        }
        Some(answer)
    }

    /// Everything up to the end of the connection as one answer, whose body is as it came: of one to HEAD, there is none.
    pub async fn last_answer(&mut self) -> Answer {
        while self.more().await {}
        let head = self.received.windows(4).position(|window| window == b"\r\n\r\n").expect("an answer") + 4;
        let body = self.received.split_off(head);
        let (status, headers) = parse_head(&String::from_utf8(std::mem::take(&mut self.received)).unwrap());
        Answer { status, headers, body }
    }

    async fn chunks(&mut self) -> Option<Vec<u8>> {
        let mut body = vec![];
        loop {
            let line = loop {
                match self.received.windows(2).position(|window| window == b"\r\n") {
                    Some(at) => break at,
                    None if self.more().await => {}
                    None => return None,
                }
            };
            let len = usize::from_str_radix(std::str::from_utf8(&self.received[..line]).unwrap(), 16).unwrap();
            while self.received.len() < line + 2 + len + 2 {
                if !self.more().await {
                    return None;
                }
            }
            body.extend_from_slice(&self.received[line + 2..line + 2 + len]);
            self.received.drain(..line + 2 + len + 2);
            if len == 0 {
                return Some(body);
            }
        }
    }

    /// Whether the connection has ended, with nothing more to read.
    pub async fn is_over(&mut self) -> bool {
        self.received.is_empty() && !self.more().await
    }

    /// Waits for more bytes; false at the end.
    pub async fn more(&mut self) -> bool {
        let read = tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.received)).await;
        matches!(read.expect("there is neither an answer nor an end"), Ok(1..))
    }
}

fn parse_head(head: &str) -> (u16, Vec<(String, String)>) {
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines.filter_map(|line| line.split_once(": "));
    (status, headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect())
}

/// One request on a connection of its own.
pub async fn ask(address: SocketAddr, request: impl AsRef<[u8]>) -> Answer {
    let mut raw = Raw::connect(address).await;
    raw.send(request).await;
    raw.answer().await.expect("an answer")
}

/// A request with a body whose length it announces.
pub fn request(method: &str, target: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let len = body.len();
    let mut bytes =
        format!("{method} {target} HTTP/1.1\r\nhost: esker\r\ncontent-length: {len}\r\n{headers}\r\n").into_bytes();
    bytes.extend_from_slice(body);
    bytes
}
