//! A store of several shards: each has one owner, and all members answer for all of them, also what is about several.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker::cluster::upkeep;
use esker::config::Settings;
use esker::model::Routing;
use esker::runtime::Clock;
use esker_client::wire::ClusterStatus;
use futures::{StreamExt, TryStreamExt};
use http::Method;
use http_body_util::{BodyExt, Full};
use object_store::aws::AmazonS3;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use crate::s3_server::S3Server;
use crate::support::{
    Running, SIGNED, SOON, Threads, Written, assert_readable, bytes_of, eventually, metric, params, settings,
};

pub const BUCKET: &str = "states";
pub const SHARDS: u32 = 4;
const TOKEN: (&str, &str) = ("cluster.token", "of-all-members");

pub fn member_with(server: &S3Server, id: &str, more: &[(&str, &str)]) -> Settings {
    let shards = SHARDS.to_string();
    let ours = [
        ("cluster.enabled", "true"),
        ("cluster.daemon-id", id),
        ("cluster.shards", &shards),
        ("cluster.balance-after", "1 s"),
        ("server.buckets", BUCKET),
        TOKEN,
    ];
    settings(server, &[&ours[..], &SIGNED[..], more].concat())
}

pub async fn start(server: &S3Server, id: &str) -> Running {
    Running::start(member_with(server, id, &[])).await
}

pub async fn status(daemon: &Running) -> ClusterStatus {
    daemon.client.cluster().await.unwrap()
}

pub fn owners(status: &ClusterStatus) -> BTreeMap<u32, String> {
    status.shards.iter().filter_map(|shard| Some((shard.shard, shard.owner.clone()?))).collect()
}

/// Waits until the members of these names have shards, and no two differ by more than one.
pub async fn balanced(daemon: &Running, ids: &[&str]) -> BTreeMap<u32, String> {
    eventually("shards are spread", 3 * SOON, || async {
        let Ok(status) = daemon.client.cluster().await else { return false };
        let owners = owners(&status);
        let counts: Vec<_> = ids.iter().map(|id| owners.values().filter(|owner| owner == id).count()).collect();
        let served = status.shards.iter().all(|shard| shard.segments.is_some());
        owners.len() == SHARDS as usize
            && served
            && counts.iter().sum::<usize>() == SHARDS as usize
            && counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1
    })
    .await;
    owners(&status(daemon).await)
}

/// Three members that share the shards.
pub async fn three(server: &S3Server) -> [Running; 3] {
    let daemons = [start(server, "a").await, start(server, "b").await, start(server, "c").await];
    balanced(&daemons[0], &["a", "b", "c"]).await;
    daemons
}

/// Keys of all shards: some in a folder of their own, some below jobs of Flink's, some in the bucket itself.
fn keys() -> Vec<String> {
    let mut keys: Vec<String> = (0..12).map(|n| format!("d{n}/x")).collect();
    keys.extend((0..6).map(|n| format!("flink/{n:032x}/chk-1/state")));
    keys.extend((0..3).map(|n| format!("root-{n}")));
    let routing = Routing::over(SHARDS);
    let shards: BTreeSet<u32> = keys.iter().map(|key| routing.of_key(BUCKET, key)).collect();
    assert_eq!(shards.len(), SHARDS as usize, "some shard has no key");
    keys
}

/// Two keys of different shards.
fn two_shards() -> (String, String) {
    let routing = Routing::over(SHARDS);
    let first = "one/x".to_owned();
    let mut others = (0..).map(|n| format!("other{n}/x"));
    let other = others.find(|key| routing.of_key(BUCKET, key) != routing.of_key(BUCKET, &first)).unwrap();
    (first, other)
}

pub async fn put(client: &AmazonS3, key: &str, bytes: impl Into<PutPayload>) {
    client.put(&Path::from(key), bytes.into()).await.unwrap();
}

pub async fn get(client: &AmazonS3, key: &str) -> Bytes {
    client.get(&Path::from(key)).await.unwrap().bytes().await.unwrap()
}

fn is_missing<T>(result: &object_store::Result<T>) -> bool {
    matches!(result, Err(object_store::Error::NotFound { .. }))
}

/// The status of a request that is signed by its address, to a bucket.
pub async fn signed(client: &AmazonS3, method: Method) -> u16 {
    let url = client.signed_url(method.clone(), &Path::from(""), Duration::from_secs(60)).await.unwrap();
    sent(method, url.as_str(), "").await.0
}

/// Status and text of an answer of the native API.
pub async fn api(daemon: &Running, method: Method, path: &str, body: &str) -> (u16, String) {
    sent(method, &format!("http://{}{path}", daemon.address()), body).await
}

pub async fn sent(method: Method, url: &str, body: &str) -> (u16, String) {
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
    let request = http::Request::builder().method(method).uri(url).header("content-type", "application/json");
    let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
    let answer = client.request(request).await.unwrap();
    let status = answer.status().as_u16();
    let text = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&text).into_owned())
}

/// All pages of a listing, `max` entries each: names in the order in which they came, prefixes with their slash.
async fn pages(client: &AmazonS3, prefix: &str, delimiter: Option<&'static str>, max: usize) -> Vec<String> {
    let mut names = vec![];
    let mut page_token = None;
    loop {
        let options = PaginatedListOptions {
            delimiter: delimiter.map(Into::into),
            max_keys: Some(max),
            page_token: page_token.take(),
            ..PaginatedListOptions::default()
        };
        let page = client.list_paginated(Some(prefix).filter(|prefix| !prefix.is_empty()), options).await.unwrap();
        let mut of_page: Vec<String> = page.result.objects.iter().map(|object| object.location.to_string()).collect();
        of_page.extend(page.result.common_prefixes.iter().map(|prefix| format!("{prefix}/")));
        assert!(of_page.len() <= max, "{of_page:?}");
        of_page.sort();
        names.extend(of_page);
        match page.page_token {
            Some(token) => page_token = Some(token),
            None => return names,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_member_answers_for_every_shard_and_what_is_about_several() {
    let server = S3Server::start().await;
    let daemons = three(&server).await;
    let clients = daemons.each_ref().map(|daemon| daemon.s3_client_of(BUCKET));
    let keys = keys();

    for (n, key) in keys.iter().enumerate() {
        put(&clients[n % 3], key, key.clone()).await;
    }
    for client in &clients {
        for key in &keys {
            assert_eq!(get(client, key).await, key.as_bytes());
        }
    }
    // Listings: complete, in order, and cut anywhere, as those of one catalog.
    let mut sorted = keys.clone();
    sorted.sort();
    let rolled: BTreeSet<String> = keys
        .iter()
        .map(|key| key.split_once('/').map_or_else(|| key.clone(), |(folder, _)| format!("{folder}/")))
        .collect();
    for (client, max) in clients.iter().zip([1, 4, 1000]) {
        assert_eq!(pages(client, "", None, max).await, sorted, "{max}");
        assert_eq!(pages(client, "", Some("/"), max).await, rolled.iter().cloned().collect::<Vec<_>>(), "{max}");
        let flink: Vec<_> = sorted.iter().filter(|key| key.starts_with("flink/")).cloned().collect();
        assert_eq!(pages(client, "flink/", None, max).await, flink);
        let job = format!("flink/{:032x}/", 3);
        assert_eq!(pages(client, &job, None, max).await, [format!("{job}chk-1/state")]);
    }
    // A batch of deletes of all shards.
    let (gone, kept) = sorted.split_at(10);
    let doomed = gone.iter().map(|key| Ok(Path::from(key.as_str()))).collect::<Vec<_>>();
    let doomed = futures::stream::iter(doomed).boxed();
    let deleted: Vec<Path> = clients[1].delete_stream(doomed).try_collect().await.unwrap();
    assert_eq!(deleted.len(), gone.len());
    assert_eq!(pages(&clients[2], "", None, 3).await, kept);
    let status = status(&daemons[2]).await;
    let segments: usize = status.shards.iter().filter_map(|shard| shard.segments).sum();
    assert_eq!((status.shards.len(), segments), (SHARDS as usize, kept.len()), "{status:?}");
    let mut owned = 0.0;
    for daemon in &daemons {
        owned += metric(&daemon.client, "esker_shards_owned").await;
    }
    assert_eq!(owned, f64::from(SHARDS));
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_and_uploads_go_over_shards_with_their_conditions() {
    let server = S3Server::start().await;
    let daemons = three(&server).await;
    let clients = daemons.each_ref().map(|daemon| daemon.s3_client_of(BUCKET));
    let (from, to) = two_shards();
    let (source, copy) = (Path::from(from.as_str()), Path::from(to.as_str()));
    let bytes = Bytes::from((0..3_000_000_u32).map(|n| n as u8).collect::<Vec<u8>>());
    let attributes = object_store::Attributes::from_iter([
        (object_store::Attribute::ContentType, "text/esker"),
        (object_store::Attribute::Metadata("who".into()), "me"),
    ]);
    let options = PutOptions { attributes, ..PutOptions::default() };
    clients[0].put_opts(&source, bytes.clone().into(), options).await.unwrap();

    for client in &clients {
        client.copy(&source, &copy).await.unwrap();
        let found = client.get(&copy).await.unwrap();
        assert_eq!(found.attributes.get(&object_store::Attribute::ContentType).map(AsRef::as_ref), Some("text/esker"));
        let who = found.attributes.get(&object_store::Attribute::Metadata("who".into()));
        assert_eq!(who.map(AsRef::as_ref), Some("me"));
        assert_eq!(found.bytes().await.unwrap(), bytes);
        client.delete(&copy).await.unwrap();
        assert!(is_missing(&client.head(&copy).await));
    }
    let nothing = clients[1].copy(&Path::from("not/there"), &copy).await;
    assert!(is_missing(&nothing), "{nothing:?}");

    // An upload is begun, filled and completed through any member, and seen by all; until then, too.
    let id = clients[0].create_multipart(&copy).await.unwrap();
    let part = Bytes::from(vec![7; 5 << 20]);
    let mut parts = vec![];
    for (number, client) in clients.iter().enumerate() {
        parts.push(client.put_part(&copy, &id, number, part.clone().into()).await.unwrap());
    }
    clients[2].complete_multipart(&copy, &id, parts).await.unwrap();
    assert_eq!(clients[1].head(&copy).await.unwrap().size, 3 * (5 << 20));
    // Once only, whoever is asked.
    let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    for client in &clients {
        let again = client.put_opts(&copy, "x".into(), create.clone()).await;
        assert!(matches!(again, Err(object_store::Error::AlreadyExists { .. })), "{again:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_an_owner_is_killed_its_shards_move_and_no_others() {
    let server = S3Server::start().await;
    let [first, second, third] = three(&server).await;
    let client = second.s3_client_of(BUCKET);
    let keys = keys();
    for key in &keys {
        put(&client, key, "before").await;
    }
    let before = owners(&status(&second).await);

    first.kill().await;

    let through = Arc::new(client);
    let written: Vec<_> = keys
        .iter()
        .map(|key| {
            let (client, key) = (Arc::clone(&through), key.clone());
            tokio::spawn(async move { put(&client, &key, "after").await })
        })
        .collect();
    for write in written {
        write.await.unwrap();
    }
    let after = owners(&status(&third).await);
    for (shard, owner) in &before {
        match owner.as_str() {
            "a" => assert_ne!(after.get(shard).map(String::as_str), Some("a"), "{after:?}"),
            _ => assert_eq!(after.get(shard), Some(owner), "{before:?} {after:?}"),
        }
    }
    let other = third.s3_client_of(BUCKET);
    for key in &keys {
        assert_eq!(get(&other, key).await, "after");
    }
    // It comes back, and gets its part again.
    let again = start(&server, "a").await;
    balanced(&again, &["a", "b", "c"]).await;
    for key in &keys {
        assert_eq!(get(&again.s3_client_of(BUCKET), key).await, "after");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_drained_has_no_shard_and_gets_none() {
    let server = S3Server::start().await;
    let [first, second, third] = three(&server).await;

    second.client.drain("a").await.unwrap();

    balanced(&third, &["b", "c"]).await;
    // Longer than a move would take.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(owners(&status(&first).await).values().all(|owner| owner != "a"));
    put(&first.s3_client_of(BUCKET), "d/x", "through it").await;
    third.shut_down().await.unwrap();
    balanced(&second, &["b"]).await;
    assert_eq!(get(&second.s3_client_of(BUCKET), "d/x").await, "through it");

    // Rather than nobody it takes them, until somebody else does.
    second.kill().await;
    balanced(&first, &["a"]).await;
    assert_eq!(get(&first.s3_client_of(BUCKET), "d/x").await, "through it");
    let fourth = start(&server, "d").await;
    balanced(&fourth, &["d"]).await;
    assert_eq!(get(&first.s3_client_of(BUCKET), "d/x").await, "through it");
}

#[tokio::test(flavor = "multi_thread")]
async fn buckets_are_the_same_in_all_shards() {
    let server = S3Server::start().await;
    let daemons = three(&server).await;
    let at = |n: usize, bucket: &str| daemons[n].s3_client_of(bucket);
    let request = async |n: usize, method: Method, bucket: &str| signed(&at(n, bucket), method).await;

    assert_eq!(request(0, Method::PUT, "fresh").await, 200);
    for n in 0..3 {
        assert_eq!(request(n, Method::HEAD, "fresh").await, 200);
        for key in keys() {
            put(&at(n, "fresh"), &key, "x").await;
        }
    }
    assert_eq!(request(1, Method::DELETE, "fresh").await, 409, "it is not empty");
    assert_eq!(request(1, Method::HEAD, "fresh").await, 200);
    let all = pages(&at(2, "fresh"), "", None, 5).await;
    let (last, rest) = all.split_last().unwrap();
    for key in rest {
        at(0, "fresh").delete(&Path::from(key.as_str())).await.unwrap();
    }
    assert_eq!(request(2, Method::DELETE, "fresh").await, 409, "one object is left, in one shard");
    at(0, "fresh").delete(&Path::from(last.as_str())).await.unwrap();
    assert_eq!(request(2, Method::DELETE, "fresh").await, 204);
    for n in 0..3 {
        assert_eq!(request(n, Method::HEAD, "fresh").await, 404);
        for key in keys() {
            let refused = at(n, "fresh").put(&Path::from(key.as_str()), "x".into()).await;
            assert!(is_missing(&refused), "{refused:?}");
        }
    }
    assert_eq!(request(0, Method::DELETE, "fresh").await, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_with_an_upload_stays_and_one_that_was_deleted_comes_back_in_no_shard() {
    let server = S3Server::start().await;
    let daemons = three(&server).await;
    let clients: Vec<_> = daemons.iter().map(|daemon| daemon.s3_client_of(BUCKET)).collect();
    for key in keys() {
        let mut upload = clients[0].put_multipart(&Path::from(key.as_str())).await.unwrap();
        upload.put_part("part".into()).await.unwrap();

        assert_eq!(signed(&clients[1], Method::DELETE).await, 409);
        upload.complete().await.unwrap();

        assert_eq!(get(&clients[2], &key).await, "part");
        clients[2].delete(&Path::from(key.as_str())).await.unwrap();
    }
    assert_eq!(signed(&clients[1], Method::DELETE).await, 204);

    // Configured or not: only who takes the first shard over makes it again.
    let known = owners(&status(&daemons[0]).await);
    let mut left: Vec<_> = ["a", "b", "c"].into_iter().zip(daemons).collect();
    let other = left.iter().position(|(id, _)| *id != known[&0] && known.values().any(|owner| owner == id)).unwrap();
    left.remove(other).1.kill().await;
    let ids: Vec<&str> = left.iter().map(|(id, _)| *id).collect();
    balanced(&left[0].1, &ids).await;

    let client = left[0].1.s3_client_of(BUCKET);
    assert_eq!(signed(&client, Method::HEAD).await, 404);
    for key in keys() {
        let refused = client.put(&Path::from(key.as_str()), "x".into()).await;
        assert!(is_missing(&refused), "{refused:?}");
    }
}

/// One request becomes several: who asks is looked at first.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_has_no_shard_asked() {
    let server = S3Server::start().await;
    let daemon = Running::start(member_with(&server, "a", &[("auth.tokens", "of-clients")])).await;
    let many = format!(r#"{{"segments": [{}""]}}"#, r#""","#.repeat(50_000));
    let begun = Instant::now();

    for (method, path, body) in [
        (Method::POST, "/v1/restore", many.as_str()),
        (Method::GET, "/v1/jobs", ""),
        (Method::GET, "/v1/segments/01J", ""),
        (Method::GET, "/v1/audit", ""),
        (Method::POST, "/v1/jobs", r#"{"job": "x"}"#),
    ] {
        assert_eq!(api(&daemon, method, path, body).await.0, 401, "{path}");
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_all_shards_are_found_through_any_member() {
    let server = S3Server::start().await;
    let daemons = three(&server).await;
    let jobs: Vec<String> = (0..8).map(|n| format!("job{n}")).collect();
    let routing = Routing::over(SHARDS);
    assert!(jobs.iter().map(|job| routing.of_job(job)).collect::<BTreeSet<_>>().len() > 1);
    let mut written = HashMap::new();
    for (n, job) in jobs.iter().enumerate() {
        let client = &daemons[n % 3].client;
        client.create_job(job).await.unwrap();
        client.begin(job, 1).await.unwrap();
        let (key, data) = (format!("key-{n}"), bytes_of(n as u64, 50_000));
        let info = client.put(job, &params(), Some(&key), data.clone()).await.unwrap();
        written.insert(job.clone(), Written { key, data, info });
        client.complete(job, 1).await.unwrap();
    }
    for daemon in &daemons {
        let listed: Vec<_> = daemon.client.jobs().await.unwrap().into_iter().map(|job| job.job).collect();
        assert_eq!(listed, jobs);
        let all: Vec<_> = written.values().cloned().collect();
        assert_readable(&daemon.client, &all).await;
    }
    // What is not there is so everywhere.
    let error = daemons[0].client.get("00000000000000000000000000").await.unwrap_err();
    assert_eq!(error.status().map(|status| status.as_u16()), Some(404), "{error}");
    for path in ["/v1/space?by=job", "/v1/verify", "/v1/reclaim", "/v1/gc", "/v1/objects?bucket=states"] {
        let (status, text) = api(&daemons[2], Method::GET, path, "").await;
        assert_eq!(status, 200, "{path}: {text}");
        if path.contains("verify") {
            let counted: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!((&counted["segments"], &counted["faults"]), (&8.into(), &serde_json::json!([])), "{text}");
        }
        if path.contains("space") {
            let table: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(table["total"]["segments"], 8, "{text}");
        }
    }
}

/// A history of one object in each shard, while owners are killed and drained: no read goes back behind what was answered before it.
#[tokio::test(flavor = "multi_thread")]
async fn reads_never_go_back_in_any_shard() {
    let server = S3Server::start().await;
    server.faults().set_latency(Duration::from_millis(3));
    let mut daemons: Vec<Option<Running>> = three(&server).await.into_iter().map(Some).collect();
    let routing = Routing::over(SHARDS);
    let keys: Vec<String> = (0..SHARDS)
        .map(|shard| (0..).map(|n| format!("c{n}/x")).find(|key| routing.of_key(BUCKET, key) == shard).unwrap())
        .collect();
    let over = Arc::new(AtomicBool::new(false));
    let stays = 2;
    let mut writers = vec![];
    let mut readers = vec![];
    for key in &keys {
        let answered = Arc::new(AtomicU64::new(0));
        put(&daemons[stays].as_ref().unwrap().s3_client_of(BUCKET), key, "0").await;
        let (client, written, ends) =
            (daemons[stays].as_ref().unwrap().s3_client_of(BUCKET), Arc::clone(&answered), Arc::clone(&over));
        let of = key.clone();
        writers.push(tokio::spawn(async move {
            let mut number = 0_u64;
            while !ends.load(Ordering::SeqCst) {
                number += 1;
                put(&client, &of, number.to_string()).await;
                written.fetch_max(number, Ordering::SeqCst);
            }
            number
        }));
        for daemon in daemons.iter().flatten() {
            let (client, answered, ends) =
                (daemon.s3_client_that_gives_up(BUCKET), Arc::clone(&answered), Arc::clone(&over));
            let key = Path::from(key.as_str());
            readers.push(tokio::spawn(async move {
                let mut reads = 0;
                while !ends.load(Ordering::SeqCst) {
                    let least = answered.load(Ordering::SeqCst);
                    let Ok(found) = client.get(&key).await else {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        continue;
                    };
                    let Ok(bytes) = found.bytes().await else { continue };
                    let read: u64 = std::str::from_utf8(&bytes).unwrap().parse().unwrap();
                    assert!(read >= least, "{key}: read {read} after {least} was answered");
                    reads += 1;
                }
                reads
            }));
        }
    }
    let begun = Clock::instant();
    let mut round = 0;
    while begun.elapsed() < Duration::from_secs(12) {
        tokio::time::sleep(Duration::from_millis(1200)).await;
        let index = round % 2;
        let id = ["a", "b"][index];
        match round % 4 {
            0 | 1 => {
                daemons[index].take().unwrap().kill().await;
                daemons[index] = Some(start(&server, id).await);
            }
            _ => daemons[stays].as_ref().unwrap().client.drain(id).await.unwrap(),
        }
        round += 1;
    }
    over.store(true, Ordering::SeqCst);
    let (mut writes, mut reads) = (0, 0);
    for writer in writers {
        writes += writer.await.unwrap();
    }
    for reader in readers {
        reads += reader.await.unwrap();
    }
    println!("{round} disturbances, {writes} writes, {reads} reads");
    assert!(reads > 20 && writes > 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_shards_is_decided_once_and_a_catalog_is_opened_as_its_own_shard() {
    let server = S3Server::start().await;
    let first = start(&server, "a").await;
    let client = first.s3_client_of(BUCKET);
    for key in keys() {
        put(&client, &key, "x").await;
    }
    // Whatever others are configured with.
    let second = Running::start(member_with(&server, "b", &[("cluster.shards", "16")])).await;
    assert_eq!(status(&second).await.shards.len(), SHARDS as usize);
    for daemon in [first, second] {
        daemon.shut_down().await.unwrap();
    }
    let names = server.objects().keys("esker/");
    for shard in 0..SHARDS {
        for name in ["ESKER", "catalog/FORMAT", "catalog/STORE"] {
            let name = format!("esker/shards/{shard}/{name}");
            assert!(names.contains(&name), "{name} is not in {names:?}");
        }
    }
    assert!(!names.iter().any(|name| name.starts_with("esker/data") || name.starts_with("esker/ESKER")), "{names:?}");

    // A daemon by itself, and one of another number of shards.
    let refused = Running::try_start(settings(&server, &[]), Threads::Two).await.err().unwrap();
    assert!(refused.contains("divided into 4 shards") && refused.contains("cluster.enabled"), "{refused}");
    let moved = server.objects().get("esker/shards/1/catalog/FORMAT").unwrap();
    let text = String::from_utf8(moved.to_vec()).unwrap();
    server.objects().set("esker/shards/1/catalog/FORMAT", text.replace("shard 1 of 4", "shard 2 of 4").into());
    let again = start(&server, "a").await;
    let client = again.s3_client_that_gives_up(BUCKET);
    let routing = Routing::over(SHARDS);
    for key in keys() {
        match routing.of_key(BUCKET, &key) {
            1 => {}
            _ => assert_eq!(get(&client, &key).await, "x"),
        }
    }
    // The shard that cannot be opened is not served, and says so after a while.
    let in_it = keys().into_iter().find(|key| routing.of_key(BUCKET, key) == 1).unwrap();
    let refused = client.get(&Path::from(in_it)).await.unwrap_err();
    assert!(refused.to_string().contains("503"), "{refused}");
    let status = status(&again).await;
    assert_eq!(status.shards.iter().filter(|shard| shard.segments.is_some()).count(), SHARDS as usize - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn maps_of_shards_that_were_deleted_are_made_anew_and_commands_see_one_shard() {
    let server = S3Server::start().await;
    let first = start(&server, "a").await;
    let client = first.s3_client_of(BUCKET);
    for key in keys() {
        put(&client, &key, "x").await;
    }
    first.shut_down().await.unwrap();
    for key in server.objects().keys("esker/cluster/map/") {
        server.objects().remove(&key);
    }

    let refused = Running::try_start(member_with(&server, "a", &[]), Threads::Two).await.err().unwrap();
    assert!(refused.contains("esker cluster repair"), "{refused}");
    upkeep::repair(&member_with(&server, "a", &[])).await.unwrap();
    let again = start(&server, "a").await;
    let mut sorted = keys();
    sorted.sort();
    assert_eq!(pages(&again.s3_client_of(BUCKET), "", None, 7).await, sorted);
    again.shut_down().await.unwrap();

    // A store that has a catalog is not divided.
    let whole = S3Server::start().await;
    let alone = Running::start(settings(&whole, &[("server.buckets", BUCKET)])).await;
    alone.shut_down().await.unwrap();
    let member = start(&whole, "a").await;
    assert_eq!(status(&member).await.shards.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_need_a_token_where_clients_need_keys() {
    let server = S3Server::start().await;
    let without = [("cluster.enabled", "true"), ("cluster.shards", "4")];
    let refused = Running::try_start(settings(&server, &[&without[..], &SIGNED[..]].concat()), Threads::Two).await;
    let refused = refused.err().unwrap();
    assert!(refused.contains("cluster.token"), "{refused}");
    assert!(server.objects().keys("esker/cluster/").is_empty(), "it has not joined");
}
