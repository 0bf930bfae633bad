//! Several daemons on one store: one has the catalog, all answer, and another takes over when it is gone. What was answered
//! stays, and nobody answers what is older than that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use esker::runtime::Clock;
use esker_client::Client;
use esker_client::wire::ClusterStatus;
use http::Method;
use http_body_util::Full;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};

use crate::crashes::Writers;
use crate::faults::{Fault, Gate, Rule, any};
use crate::s3_server::S3Server;
use crate::support::{
    JOB, Running, SIGNED, SOON, Threads, Written, assert_readable, create_job, eventually, listed, metric, put,
    put_until_answered, settings,
};

const BUCKET: &str = "states";

/// Settings of a member called `id`.
fn member(server: &S3Server, id: &str) -> esker::config::Settings {
    member_with(server, id, &[])
}

pub(crate) fn member_with(server: &S3Server, id: &str, more: &[(&str, &str)]) -> esker::config::Settings {
    let ours = [("cluster.enabled", "true"), ("cluster.daemon-id", id), ("server.buckets", BUCKET)];
    settings(server, &[&ours[..], &SIGNED[..], more].concat())
}

async fn start(server: &S3Server, id: &str) -> Running {
    Running::start(member(server, id)).await
}

async fn status(client: &Client) -> ClusterStatus {
    client.cluster().await.unwrap()
}

/// The member that has the catalog, as the one behind `client` knows.
async fn owner(client: &Client) -> Option<String> {
    status(client).await.shards.first().and_then(|shard| shard.owner.clone())
}

pub(crate) async fn owned_by(client: &Client, id: &str) {
    eventually("the catalog has its new owner", SOON, || async {
        client.cluster().await.is_ok_and(|status| status.shards.iter().any(|shard| shard.owner.as_deref() == Some(id)))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_member_answers_everything_and_all_show_what_one_has_answered() {
    let server = S3Server::start().await;
    let (first, second) = (start(&server, "a").await, start(&server, "b").await);

    create_job(&second.client).await;
    let by_second = put(&second.client, 1, 300).await.unwrap();
    let by_first = put(&first.client, 2, 3 << 20).await.unwrap();
    for daemon in [&first, &second] {
        assert_readable(&daemon.client, &[by_first.clone(), by_second.clone()]).await;
        assert_eq!(listed(&daemon.client).await.len(), 2);
    }
    let (one, other) = (first.s3_client_of(BUCKET), second.s3_client_of(BUCKET));
    let (small, large) = (Path::from("d/small object"), Path::from("d/large"));
    other.put(&small, PutPayload::from_static(b"x")).await.unwrap();
    let bytes = Bytes::from(vec![7; 9 << 20]);
    other.put(&large, bytes.clone().into()).await.unwrap();
    assert_eq!(one.get(&small).await.unwrap().bytes().await.unwrap(), "x");
    for client in [&one, &other] {
        assert_eq!(client.get(&large).await.unwrap().bytes().await.unwrap(), bytes);
        assert_eq!(client.get_range(&large, 5..9).await.unwrap(), bytes[5..9]);
    }
    one.delete(&small).await.unwrap();
    assert!(other.get(&small).await.is_err_and(|error| matches!(error, object_store::Error::NotFound { .. })));

    let told = status(&second.client).await;
    let members: Vec<_> = told.members.iter().map(|member| (member.id.as_str(), member.reachable)).collect();
    assert_eq!(members, [("a", true), ("b", true)]);
    assert_eq!(told.shards[0].owner.as_deref(), Some("a"));
    assert_eq!(told, status(&first.client).await);
    assert!(told.shards[0].segments >= Some(3), "{told:?}");
}

/// Runs writers at `through` while `disturb` happens. Nobody may be answered with an error.
async fn without_an_error(through: &Client, disturb: impl Future<Output = ()>) -> Vec<Written> {
    let writers = Writers::start(through, 4, 1000);
    eventually("writers are answered", SOON, || async { writers.answered() > 20 }).await;
    disturb.await;
    let before = writers.answered();
    eventually("writers go on", SOON, || async { writers.answered() > before + 20 || writers.idle() }).await;
    let stopped = writers.stop();
    assert_eq!(stopped.unanswered, Vec::<u64>::new(), "requests were answered with an error");
    stopped.answered
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_owner_is_killed_another_takes_over_and_clients_of_the_others_see_no_error() {
    let server = S3Server::start().await;
    let (first, second) = (start(&server, "a").await, start(&server, "b").await);
    let third = start(&server, "c").await;
    create_job(&second.client).await;

    let written = without_an_error(&second.client, first.kill()).await;

    let new = owner(&third.client).await.expect("somebody has the catalog");
    assert_ne!(new, "a");
    assert_readable(&third.client, &written).await;
    assert_readable(&second.client, &written).await;
    // It comes back as another process of itself, and follows.
    let again = start(&server, "a").await;
    assert_readable(&again.client, &written).await;
    assert_eq!(owner(&again.client).await, Some(new));
    assert_eq!(status(&again.client).await.members.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_ends_gives_the_catalog_away_and_nobody_sees_an_error() {
    let server = S3Server::start().await;
    let (first, second) = (start(&server, "a").await, start(&server, "b").await);
    create_job(&second.client).await;

    let written = without_an_error(&second.client, async { first.shut_down().await.unwrap() }).await;

    assert_readable(&second.client, &written).await;
    let told = status(&second.client).await;
    assert_eq!((told.members.len(), told.shards[0].cause.as_str()), (1, "handed-over"), "{told:?}");
    second.shut_down().await.unwrap();

    let alone = start(&server, "c").await;
    assert_readable(&alone.client, &written).await;
    assert_eq!(status(&alone.client).await.shards[0].cause, "unowned");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_drained_gives_the_catalog_away_and_stays() {
    let server = S3Server::start().await;
    let (first, second) = (start(&server, "a").await, start(&server, "b").await);
    create_job(&second.client).await;

    let written = without_an_error(&first.client, async {
        second.client.drain("a").await.unwrap();
        owned_by(&second.client, "b").await;
    })
    .await;

    assert_readable(&first.client, &written).await;
    assert_eq!(status(&first.client).await.members.len(), 2);
    assert!(second.client.drain("z").await.is_err_and(|error| error.status() == Some(http::StatusCode::NOT_FOUND)));
}

/// The owner stands still, is succeeded, and goes on: what its clients are answered then is what is so then.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_stood_still_answers_nothing_that_is_older_than_its_successors_answers() {
    let server = S3Server::start().await;
    let first = Running::try_start(member(&server, "a"), Threads::One).await.unwrap();
    let second = start(&server, "b").await;
    create_job(&second.client).await;
    let key = Path::from("the object");
    let (old, new) = (first.s3_client_that_gives_up(BUCKET), second.s3_client_of(BUCKET));
    old.put(&key, PutPayload::from_static(b"0")).await.unwrap();
    for round in 1..=3_u8 {
        let (owner_id, standing, going) = if round % 2 == 1 { ("a", &first, &second) } else { ("b", &second, &first) };
        if round % 2 == 0 {
            // Only the first can be stopped: it has to be the owner again.
            second.client.drain("b").await.unwrap();
            owned_by(&second.client, "a").await;
            continue;
        }
        assert_eq!(owner(&going.client).await.as_deref(), Some(owner_id));
        let stopped = standing.pause().await;
        let text = vec![b'0' + round];
        eventually("the other one takes over", SOON, || async {
            new.put(&key, PutPayload::from(text.clone())).await.is_ok()
        })
        .await;
        assert_eq!(new.get(&key).await.unwrap().bytes().await.unwrap(), text);

        drop(stopped);

        for _ in 0..20 {
            if let Ok(found) = old.get(&key).await {
                assert_eq!(found.bytes().await.unwrap(), text, "round {round}: an answer of the past");
            }
        }
        owned_by(&first.client, "b").await;
        let found = first.s3_client_of(BUCKET).get(&key).await.unwrap();
        assert_eq!(found.bytes().await.unwrap(), text);
    }
    assert!(metric(&first.client, "esker_fenced_total").await >= 1.0);
}

/// A history of one object: reads, by any member, never go back behind what was answered before they began.
#[tokio::test(flavor = "multi_thread")]
async fn reads_never_go_back_whoever_is_killed_or_drained_meanwhile() {
    let server = S3Server::start().await;
    server.faults().set_latency(Duration::from_millis(5));
    let mut daemons: Vec<Option<Running>> = vec![];
    for id in ["a", "b", "c"] {
        daemons.push(Some(start(&server, id).await));
    }
    let key = Path::from("counter");
    let (answered, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let of = |daemon: &Running| daemon.s3_client_of(BUCKET);
    of(daemons[0].as_ref().unwrap()).put(&key, PutPayload::from_static(b"0")).await.unwrap();
    // A writer and a reader at the one that stays.
    let stays = 2;
    let writer = {
        let (client, answered, over) = (of(daemons[stays].as_ref().unwrap()), answered.clone(), over.clone());
        let key = key.clone();
        tokio::spawn(async move {
            let mut number = 0_u64;
            while !over.load(Ordering::SeqCst) {
                number += 1;
                client.put(&key, PutPayload::from(number.to_string())).await.unwrap();
                answered.fetch_max(number, Ordering::SeqCst);
            }
        })
    };
    let readers: Vec<_> = daemons
        .iter()
        .map(|daemon| {
            let (client, answered, over) =
                (daemon.as_ref().unwrap().s3_client_that_gives_up(BUCKET), answered.clone(), over.clone());
            let key = key.clone();
            tokio::spawn(async move {
                let mut reads = 0;
                while !over.load(Ordering::SeqCst) {
                    let least = answered.load(Ordering::SeqCst);
                    // A member that was killed answers nobody.
                    let Ok(found) = client.get(&key).await else {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        continue;
                    };
                    let Ok(bytes) = found.bytes().await else { continue };
                    let read: u64 = std::str::from_utf8(&bytes).unwrap().parse().unwrap();
                    assert!(read >= least, "read {read} after {least} was answered");
                    reads += 1;
                }
                reads
            })
        })
        .collect();
    let begun = Clock::instant();
    let mut round = 0;
    while begun.elapsed() < Duration::from_secs(12) {
        round += 1;
        tokio::time::sleep(Duration::from_millis(700)).await;
        let witness = daemons[stays].as_ref().unwrap();
        let Some(id) = owner(&witness.client).await else { continue };
        let index = ["a", "b", "c"].iter().position(|other| *other == id).unwrap();
        if index == stays || round % 2 == 0 {
            witness.client.drain(&id).await.unwrap();
            continue;
        }
        let id = ["a", "b", "c"][index];
        daemons[index].take().unwrap().kill().await;
        daemons[index] = Some(start(&server, id).await);
    }
    over.store(true, Ordering::SeqCst);
    writer.await.unwrap();
    let mut reads = 0;
    for reader in readers {
        reads += reader.await.unwrap();
    }
    println!("{round} disturbances, {} writes, {reads} reads", answered.load(Ordering::SeqCst));
    assert!(reads > 20 && answered.load(Ordering::SeqCst) > 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_by_itself_is_kept_off_the_store_of_a_cluster_until_that_is_dissolved() {
    let server = S3Server::start().await;
    let first = start(&server, "a").await;
    create_job(&first.client).await;
    let written = put(&first.client, 1, 300).await.unwrap();

    let refused = Running::try_start(settings(&server, &[]), Threads::Two).await.err().unwrap();
    assert!(refused.contains("cluster.enabled"), "{refused}");
    assert_readable(&first.client, std::slice::from_ref(&written)).await;

    let of = member(&server, "x");
    let error = esker::cluster::upkeep::dissolve(&of, false).await.unwrap_err();
    assert!(error.to_string().contains("a (http://"), "{error}");
    first.shut_down().await.unwrap();
    esker::cluster::upkeep::dissolve(&of, false).await.unwrap();
    let alone = Running::start(settings(&server, &[])).await;
    assert_readable(&alone.client, std::slice::from_ref(&written)).await;
    alone.shut_down().await.unwrap();

    let again = start(&server, "a").await;
    assert_readable(&again.client, &[written]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_daemons_of_one_name_are_told_and_the_later_one_goes_on() {
    let server = S3Server::start().await;
    let first = start(&server, "a").await;
    create_job(&first.client).await;
    let written = put(&first.client, 1, 300).await.unwrap();

    // The one before is alive on this machine: whatever it believes has to end first.
    let second = start(&server, "a").await;

    assert_readable(&second.client, std::slice::from_ref(&written)).await;
    // Its next answer would have to be proven.
    eventually("the first one knows", SOON, || async { first.client.get(&written.info.segment).await.is_err() }).await;
    let ended = tokio::time::timeout(SOON, first.shut_down()).await.unwrap();
    assert!(ended.is_err_and(|error| error.contains("cluster.daemon-id")), "it is not told");
    assert_eq!(status(&second.client).await.members.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn maps_that_were_deleted_are_missed_and_made_anew_only_when_told() {
    let server = S3Server::start().await;
    let first = start(&server, "a").await;
    create_job(&first.client).await;
    let written = put(&first.client, 1, 300).await.unwrap();
    first.shut_down().await.unwrap();
    for key in server.objects().keys("esker/cluster/map/") {
        server.objects().remove(&key);
    }

    let refused = Running::try_start(member(&server, "a"), Threads::Two).await.err().unwrap();
    assert!(refused.contains("esker cluster repair"), "{refused}");
    esker::cluster::upkeep::repair(&member(&server, "a")).await.unwrap();
    let again = start(&server, "a").await;

    assert_readable(&again.client, &[written]).await;
    let error = esker::cluster::upkeep::repair(&member(&server, "a")).await.unwrap_err();
    assert!(error.to_string().contains("is there"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_without_the_token_are_refused_and_clients_cannot_pose_as_peers() {
    let server = S3Server::start().await;
    let with = |id, token| member_with(&server, id, &[("cluster.token", token)]);
    let first = Running::start(with("a", "one")).await;
    let url = format!("http://{}/peer/v1/ping", first.address());
    let http = reqwest_like(&url, &[("esker-peer", "1"), ("esker-peer-token", "two")]).await;
    assert_eq!(http, 401);
    assert_eq!(reqwest_like(&url, &[("esker-peer", "1"), ("esker-peer-token", "one")]).await, 421, "for nobody");
    assert_eq!(reqwest_like(&url, &[]).await, 404, "a path like any");
    let again = format!("http://{}/v1/jobs", first.address());
    assert_eq!(reqwest_like(&again, &[("esker-peer-door", "s3")]).await, 200, "a client's header means nothing");
}

/// A request that was passed on to a member while it had the catalog arrives when another one has had it since, and the member has it once
/// more: by then another one may have carried it out, and others may have followed.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_late_is_not_carried_out_by_who_has_the_catalog_again() {
    let server = S3Server::start().await;
    let (first, second) = (start(&server, "a").await, start(&server, "b").await);
    create_job(&second.client).await;
    let told = |field: &'static str| {
        let last = server.objects().keys("esker/cluster/map/").into_iter().max().unwrap();
        let map: serde_json::Value = serde_json::from_slice(&server.objects().get(&last).unwrap()).unwrap();
        map["owners"][0][field].clone()
    };
    let epoch = || (told("epoch_before").as_u64().unwrap() + 1).to_string();
    let (incarnation, before) = (told("incarnation").as_str().unwrap().to_owned(), epoch());
    second.client.drain("a").await.unwrap();
    owned_by(&second.client, "b").await;
    second.kill().await;
    owned_by(&first.client, "a").await;
    listed(&first.client).await;
    assert_eq!(told("incarnation").as_str(), Some(incarnation.as_str()), "the same process");
    let now = epoch();
    assert_ne!(now, before);
    let passed_on = async |job: &str, epoch: Option<&str>| {
        let mut headers = vec![("esker-peer", "1"), ("esker-peer-for", &incarnation), ("esker-peer-door", "api")];
        headers.extend(epoch.map(|epoch| ("esker-peer-epoch", epoch)));
        headers.push(("content-type", "application/json"));
        let url = format!("http://{}/v1/jobs", first.address());
        asked(Method::POST, &url, &headers, &format!("{{\"job\":\"{job}\"}}")).await
    };

    assert_eq!(passed_on("late", Some(&before)).await, 421);

    let jobs = async || first.client.jobs().await.unwrap().into_iter().map(|job| job.job).collect::<Vec<_>>();
    assert_eq!(jobs().await, [JOB]);
    assert!((200..300).contains(&passed_on("in-time", Some(&now)).await));
    assert!((200..300).contains(&passed_on("of-an-older-release", None).await));
    assert_eq!(jobs().await.len(), 3);
}

/// The status of a GET.
async fn reqwest_like(url: &str, headers: &[(&str, &str)]) -> u16 {
    asked(Method::GET, url, headers, "").await
}

/// The status of a request.
async fn asked(method: Method, url: &str, headers: &[(&str, &str)], body: &str) -> u16 {
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
    let mut request = http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = Full::new(Bytes::from(body.to_owned()));
    client.request(request.body(body).unwrap()).await.unwrap().status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_member_that_was_killed_is_back_at_once() {
    let server = S3Server::start().await;
    let first = start(&server, "a").await;
    create_job(&first.client).await;
    let written = put_until_answered(&first.client, 1, 300, SOON).await.0;
    first.kill().await;

    let begun = Clock::instant();
    let again = start(&server, "a").await;

    // Its process is known to be gone: nobody waits until it would have stopped to believe that it is alone.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_readable(&again.client, &[written]).await;
    assert_eq!(again.client.jobs().await.unwrap()[0].job, JOB);
}

/// A take-over is cut off at one of its requests, and dies there; that request is carried out later all the same. Whoever comes
/// next finds everything that was answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_take_over_that_dies_at_any_of_its_requests_is_taken_over_itself() {
    let server = S3Server::start().await;
    let mut written = vec![];
    for (round, step) in (0..60).step_by(6).enumerate() {
        let first = start(&server, "a").await;
        let second = start(&server, "b").await;
        create_job(&first.client).await;
        written.push(put(&second.client, 1000 + round as u64, 300).await.unwrap());
        // What only the log has, and what only a file has.
        written.push(put(&first.client, 2000 + round as u64, 60_000).await.unwrap());
        first.kill().await;
        let gate = Gate::closed();
        let held = server.faults().add(Rule::everything(any).after(step).times(1), Fault::Held(gate.clone()));
        eventually("the take-over is held, or over", SOON, || async {
            held.hits() > 0 || second.client.segments(JOB, None, None).await.is_ok()
        })
        .await;
        second.kill().await;
        let third = start(&server, "c").await;
        gate.open();
        server.faults().clear();

        assert_readable(&third.client, &written).await;
        written.push(put_until_answered(&third.client, 3000 + round as u64, 300, SOON).await.0);
        assert_readable(&third.client, &written).await;
        third.shut_down().await.unwrap();
    }
    let last = start(&server, "a").await;
    assert_readable(&last.client, &written).await;
    assert_eq!(listed(&last.client).await.len(), written.len());
}
