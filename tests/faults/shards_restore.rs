//! Segments of several shards in one answer: in order, whole, with bounded memory, or an error that says which one is not.

use std::time::Duration;

use bytes::Bytes;
use esker_client::wire::{BatchAnswer, BatchHead, SegmentInfo};
use esker_client::{Client, ClientError};
use http::Method;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::restore::{all, these};
use crate::s3_server::S3Server;
use crate::shards::{api, balanced, member_with, start, three};
use crate::support::{LITTLE_MEMORY, Running, bytes_of, object_key, seed};

/// Segments of jobs of all shards, with their bytes.
async fn stored(client: &Client, lens: impl Fn(u64) -> usize) -> Vec<(SegmentInfo, Bytes)> {
    let mut stored = vec![];
    for job in 0..8_u64 {
        let name = format!("job{job}");
        client.create_job(&name).await.unwrap();
        let segments: Vec<_> = (0..30).map(|n| bytes_of(job * 1000 + n, lens(n))).collect();
        let head = |n: usize| BatchHead { checkpoint: Some(1), name: Some(n.to_string()), ..BatchHead::default() };
        let heads: Vec<_> = segments.iter().enumerate().map(|(n, bytes)| (head(n), bytes.clone())).collect();
        for (answer, bytes) in client.put_many(&name, &heads).await.unwrap().into_iter().zip(segments) {
            let BatchAnswer::Stored(info) = answer else { panic!("{answer:?}") };
            stored.push((info, bytes));
        }
        client.complete(&name, 1).await.unwrap();
    }
    stored
}

async fn assert_restored(client: &Client, wanted: &[(SegmentInfo, Bytes)]) {
    let infos: Vec<SegmentInfo> = wanted.iter().map(|(info, _)| info.clone()).collect();
    let arrived = all(client.restore(&these(&infos)).await.unwrap()).await.unwrap();
    assert_eq!(arrived.len(), wanted.len());
    for ((id, bytes), (info, expected)) in arrived.iter().zip(wanted) {
        assert!(*id == info.segment && bytes == expected, "{id} came in the place of {}", info.segment);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_of_several_shards_come_in_the_order_asked_through_any_member() {
    let server = S3Server::start().await;
    let daemons = three(&server).await;
    let lens = |n| if n % 10 == 7 { 2_000_000 } else { 20_000 + usize::try_from(n).unwrap() };
    let stored = stored(&daemons[0].client, lens).await;
    let mut random = StdRng::seed_from_u64(seed());
    let mut mixed = stored.clone();
    mixed.shuffle(&mut random);
    // The same one may be asked for twice.
    let twice: Vec<_> = (0..40).map(|_| stored[random.random_range(0..stored.len())].clone()).collect();

    for daemon in &daemons {
        assert_restored(&daemon.client, &stored).await;
        assert_restored(&daemon.client, &mixed).await;
        assert_restored(&daemon.client, &twice).await;
    }

    let unknown = "00000000000000000000000000";
    let mut ids: Vec<&str> = mixed.iter().map(|(info, _)| info.segment.as_str()).collect();
    let restore = async |ids: &[&str]| {
        let body = serde_json::json!({ "segments": ids }).to_string();
        api(&daemons[0], Method::POST, "/v1/restore", &body).await
    };
    ids.push(unknown);
    let (status, text) = restore(&ids).await;
    assert!(status == 404 && text.contains(unknown), "{status} {text}");
    *ids.last_mut().unwrap() = "no id";
    let (status, text) = restore(&ids).await;
    assert!(status == 400 && text.contains("segments"), "{status} {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_too_many_segments_is_refused_however_they_are_spread() {
    let server = S3Server::start().await;
    let daemon = Running::start(member_with(&server, "a", &[("limits.segments-per-request-max", "50")])).await;
    let stored = stored(&daemon.client, |_| 1000).await;

    assert_restored(&daemon.client, &stored[15..65]).await;
    let ids: Vec<SegmentInfo> = stored[15..66].iter().map(|(info, _)| info.clone()).collect();
    let refused = daemon.client.restore(&these(&ids)).await.unwrap_err();

    assert_eq!(refused.status().map(|status| status.as_u16()), Some(400), "{refused}");
    assert!(refused.to_string().contains("limits.segments-per-request-max"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn restores_of_several_shards_get_through_beside_idle_ones_in_little_memory() {
    let server = S3Server::start().await;
    let daemon = Running::start(member_with(&server, "a", &LITTLE_MEMORY)).await;
    let stored = stored(&daemon.client, |n| if n % 3 == 0 { 700_000 } else { 100_000 }).await;
    let mut mixed = stored.clone();
    mixed.shuffle(&mut StdRng::seed_from_u64(seed()));
    let infos: Vec<SegmentInfo> = mixed.iter().map(|(info, _)| info.clone()).collect();
    // These ask and do not read.
    let mut idle = vec![];
    for _ in 0..3 {
        idle.push(daemon.new_client().restore(&these(&infos)).await.unwrap());
    }

    let restores = (0..3).map(|_| {
        let (client, mixed) = (daemon.new_client(), mixed.clone());
        async move { assert_restored(&client, &mixed).await }
    });
    futures::future::join_all(restores).await;
    drop(idle);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_of_several_shards_breaks_off_at_the_segment_that_is_damaged() {
    let server = S3Server::start().await;
    let daemons = [start(&server, "a").await, start(&server, "b").await];
    balanced(&daemons[0], &["a", "b"]).await;
    let stored = stored(&daemons[0].client, |_| 30_000).await;
    // By turns of all jobs: so each shard has some before and behind the damaged one.
    let by_turns: Vec<_> = (0..30).flat_map(|n| (0..8).map(move |job| job * 30 + n)).collect();
    let infos: Vec<SegmentInfo> = by_turns.iter().map(|n| stored[*n].0.clone()).collect();
    let damaged = 100;
    let file = infos[damaged].file.clone().unwrap();
    let name =
        server.objects().keys("").into_iter().find(|key| key.ends_with(&object_key(&file)["esker/".len()..])).unwrap();
    let mut bytes = server.objects().get(&name).unwrap().to_vec();
    let before: Vec<usize> = (0..infos.len()).filter(|n| infos[*n].file.as_ref() == Some(&file)).collect();
    bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
    server.objects().set(&name, bytes.into());
    let first = before[0];

    for daemon in &daemons {
        let restore = daemon.client.restore(&these(&infos)).await;
        let error = match restore {
            Ok(restore) => all(restore).await.unwrap_err(),
            Err(error) => error,
        };
        match error {
            ClientError::BrokenOff { whole, segment, .. } => {
                assert_eq!((whole, segment), (first as u64, Some(infos[first].segment.clone())));
            }
            error => panic!("{error}"),
        }
    }
    // The owner ends in the middle: what came is right, and nobody takes it for all.
    let [first, second] = daemons;
    let whole: Vec<SegmentInfo> = (0..infos.len()).filter(|n| !before.contains(n)).map(|n| infos[n].clone()).collect();
    server.faults().set_latency(Duration::from_millis(50));
    let mut restore = first.new_client().restore(&these(&whole)).await.unwrap();
    assert!(restore.next().await.unwrap().is_some());
    second.kill().await;
    first.kill().await;
    assert!(all(restore).await.is_err());
}
