//! Stores the state of one checkpoint, and reads it back as a job does that goes on from it.
//!
//! `cargo run -p esker-client --example put_get [http://HOST:PORT [TOKEN]]`

use std::time::Duration;

use bytes::Bytes;
use esker_client::wire::{BatchAnswer, BatchHead, PutParams, RestoreRequest, SegmentInfo};
use esker_client::{Client, ClientError};

const JOB: &str = "put-get";

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "http://127.0.0.1:9001".to_owned());
    let client = Client::new(&address, arguments.next())?;

    client.create_job(JOB).await?;
    let latest = client.checkpoints(JOB).await?.into_iter().map(|known| known.checkpoint).max();
    let checkpoint = latest.map_or(1, |latest| latest + 1);
    client.begin(JOB, checkpoint).await?;

    let one = put(&client, checkpoint, "one", b"the state of a subtask".to_vec()).await?;
    println!("stored {} bytes as {}", one.len, one.segment);
    let head =
        |name: &str| BatchHead { checkpoint: Some(checkpoint), name: Some(name.to_owned()), ..BatchHead::default() };
    let many = [(head("two"), Bytes::from("more")), (head("three"), Bytes::from("and more"))];
    for answer in client.put_many(JOB, &many).await? {
        match answer {
            BatchAnswer::Stored(info) => println!("stored {} bytes as {}", info.len, info.segment),
            BatchAnswer::Error(body) => return Err(body.error.message.into()),
        }
    }
    client.complete(JOB, checkpoint).await?;
    println!("checkpoint {checkpoint} is complete");

    println!("read {:?}", client.get(&one.segment).await?);
    let wanted =
        RestoreRequest { job: Some(JOB.to_owned()), checkpoint: Some(checkpoint), ..RestoreRequest::default() };
    let mut arriving = client.restore(&wanted).await?;
    while let Some(segment) = arriving.next().await? {
        let mut len = 0;
        while let Some(bytes) = arriving.bytes().await? {
            len += bytes.len();
        }
        println!("restored {len} bytes of {}", segment.name.as_deref().unwrap_or(&segment.info.segment));
    }
    if let Some(latest) = latest {
        client.subsume(JOB, latest).await?;
        println!("checkpoint {latest} is subsumed: what no later one uses is freed");
    }
    Ok(())
}

/// Stores one segment; asks again for as long as the daemon says that it may work later.
async fn put(client: &Client, checkpoint: u64, name: &str, data: Vec<u8>) -> Result<SegmentInfo, ClientError> {
    let params = PutParams { checkpoint: Some(checkpoint), name: Some(name.to_owned()), ..PutParams::default() };
    // The same key for the same bytes: an attempt whose answer was lost is recognised.
    let key = format!("{checkpoint}-{name}");
    let data = Bytes::from(data);
    loop {
        match client.put(JOB, &params, Some(&key), data.clone()).await {
            Err(error) if error.is_transient() => {
                tokio::time::sleep(error.retry_after().unwrap_or(Duration::from_secs(1))).await;
            }
            answer => return answer,
        }
    }
}
