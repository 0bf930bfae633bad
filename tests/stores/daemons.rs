//! Daemons on each object storage service, and what they need of it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use esker::config::Config;
use esker::engine::{Engine, EngineOptions};
use esker::store::FileWrites;
use esker_test_support::process::{Process, esker};
use http::StatusCode;
use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStoreExt, RetryConfig};
use tempfile::TempDir;

use crate::faults::{Fault, Gate, Keys, Op, Rule, any, data, eventually, log};
use crate::place::{Place, account, bucket, on_azure, on_gcs, services};
use crate::s3_server::Conditions;
use crate::{azure, bytes, gcs, id};

const SOON: Duration = Duration::from_secs(60);

/// A daemon on a place, with a folder of its own for its log.
struct Running {
    daemon: Process,
    store: AmazonS3,
    _folder: TempDir,
}

impl Running {
    async fn start(place: &Place) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut daemon =
            Process::serve(folder.path(), url(place), &[&environment(place)[..], &HASTY.map(owned)].concat());
        let waited = tokio::task::spawn_blocking(move || {
            let ready = daemon.wait_ready();
            (daemon, ready)
        });
        let (daemon, ready) = waited.await.unwrap();
        let no_repeats = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        let options = ClientOptions::new().with_timeout(SOON);
        let store = ready.s3_builder(options).with_retry(no_repeats).build().unwrap();
        Self { daemon, store, _folder: folder }
    }

    async fn put(&self, key: &str, bytes: Bytes) -> object_store::Result<()> {
        self.store.put(&Path::from(key), bytes.into()).await.map(|_| ())
    }

    async fn assert_has(&self, key: &str, bytes: &Bytes) {
        let read = async { self.store.get(&Path::from(key)).await?.bytes().await };
        let read = read.await.unwrap_or_else(|error| panic!("{key} was answered: {error}"));
        assert!(read == *bytes, "{key} was answered with other bytes");
    }

    async fn terminate(self) {
        let daemon = self.daemon;
        tokio::task::spawn_blocking(move || daemon.terminate()).await.unwrap();
    }
}

/// Every object goes into a file, and what is dead goes soon.
const HASTY: [(&str, &str); 2] =
    [("ESKER__EXECUTION__CHECKPOINTING__DATA_INLINE_THRESHOLD", "0"), ("ESKER__MERGING__INLINE_GROUP_MAX", "0")];

fn owned((key, value): (&'static str, &str)) -> (&'static str, String) {
    (key, value.to_owned())
}

fn url(place: &Place) -> &str {
    &place.flags.iter().find(|(key, _)| key == "store.url").unwrap().1
}

/// The other flags of a place as variables.
fn environment(place: &Place) -> Vec<(&'static str, String)> {
    let named = |key: &str| -> &'static str {
        match key {
            "store.endpoint" => "ESKER__STORE__ENDPOINT",
            "store.region" => "ESKER__STORE__REGION",
            "store.access-key" => "ESKER__STORE__ACCESS_KEY",
            "store.secret-key" => "ESKER__STORE__SECRET_KEY",
            "store.gcs.service-account" => "ESKER__STORE__GCS__SERVICE_ACCOUNT",
            "reclaim.delete-grace" => "ESKER__RECLAIM__DELETE_GRACE",
            "reclaim.interval" => "ESKER__RECLAIM__INTERVAL",
            "store.azure.account" => "ESKER__STORE__AZURE__ACCOUNT",
            "store.azure.account-key" => "ESKER__STORE__AZURE__ACCOUNT_KEY",
            other => panic!("{other} has no variable here"),
        }
    };
    let flags = place.flags.iter().filter(|(key, _)| key != "store.url");
    flags.map(|(key, value)| (named(key), value.clone())).collect()
}

/// `esker verify` finds no fault in what is there.
async fn verify(place: &Place) {
    let mut verify = esker();
    verify.args(["verify", "--read-data", "100", "--store", url(place)]).envs(environment(place));
    let output = tokio::task::spawn_blocking(move || verify.output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let name = place.name;
    assert_eq!(output.status.code(), Some(0), "{name}: {said}{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_daemon_shuts_the_first_out_and_has_all_that_it_answered() {
    for place in services().await {
        let name = place.name;
        let first = Running::start(&place).await;
        let answered: Vec<(String, Bytes)> = (0..10).map(|n| (format!("jobs/a/{n}"), bytes(3_000, n))).collect();
        for (key, bytes) in &answered {
            first.put(key, bytes.clone()).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let large = bytes(12 << 20, 7);
        first.put("jobs/a/large", large.clone()).await.unwrap_or_else(|error| panic!("{name}: {error}"));

        let second = Running::start(&place).await;

        let late = first.put("jobs/a/late", bytes(3_000, 99)).await;
        assert!(late.is_err(), "{name}: the first daemon answered after the second one had started");
        let Running { daemon, .. } = first;
        let (status, log) = tokio::task::spawn_blocking(move || daemon.wait_end()).await.unwrap();
        assert_eq!(status.code(), Some(1), "{name}: {log}");
        assert!(log.contains("the catalog is lost"), "{name}: {log}");
        for (key, bytes) in &answered {
            second.assert_has(key, bytes).await;
        }
        second.assert_has("jobs/a/large", &large).await;
        second.put("jobs/a/late", bytes(2_000, 5)).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        second.terminate().await;
        verify(&place).await;
        let third = Running::start(&place).await;
        third.assert_has("jobs/a/late", &bytes(2_000, 5)).await;
        third.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_lost_and_requests_that_are_refused_cost_nothing_that_was_answered() {
    for place in [on_gcs().await, on_azure().await] {
        let (name, faults) = (place.name, place.service().faults().clone());
        faults.seed(11);
        let daemon = Running::start(&place).await;
        let rules: [(Keys, Fault); 3] = [(data, Fault::AckLost), (log, Fault::AckLost), (data, Fault::AckReplaced)];
        let hit = rules.map(|(keys, fault)| faults.add(Rule::on(Op::Put, keys).chance(0.4).times(4), fault));
        faults.add(Rule::everything(any).chance(0.05), Fault::Refused);

        let mut answered = vec![];
        for number in 0..25 {
            let (key, bytes) = (format!("jobs/a/{number}"), bytes(2_000, number));
            // Refused at most: then it is repeated, as any client does.
            let begun = Instant::now();
            while let Err(error) = daemon.put(&key, bytes.clone()).await {
                assert!(begun.elapsed() < SOON, "{name}: {error}");
            }
            answered.push((key, bytes));
        }

        assert!(hit.iter().all(|rule| rule.hits() > 0), "{name}");
        faults.clear();
        daemon.terminate().await;
        verify(&place).await;
        let next = Running::start(&place).await;
        for (key, bytes) in &answered {
            next.assert_has(key, bytes).await;
        }
        next.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_in_the_middle_of_a_large_segment_leaves_nothing_to_the_next_one() {
    for place in [on_gcs().await, on_azure().await] {
        let place = place.with(&[("reclaim.delete-grace", "1 s"), ("reclaim.interval", "1 s")]);
        let (name, service) = (place.name, place.service());
        let gate = Gate::closed();
        service.faults().add(Rule::on(Op::CompleteUpload, any).times(1), Fault::Held(gate.clone()));
        let first = Running::start(&place).await;
        let store = first.store.clone();
        let cut = tokio::spawn(async move { store.put(&Path::from("jobs/a/large"), bytes(20 << 20, 1).into()).await });
        gate.arrived(1).await;
        assert!(service.objects().loose_parts() > 0, "{name}");
        // What dropping it does: `kill -9`.
        drop(first);
        assert!(cut.await.unwrap().is_err(), "{name}");

        let next = Running::start(&place).await;
        // The completion of the first one arrives.
        gate.open();

        let left = || (service.objects().keys("stores/data/"), service.objects().loose_parts());
        let begun = Instant::now();
        while left() != (vec![], 0) {
            assert!(begun.elapsed() < SOON, "{name}: {:?}", left());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        next.put("jobs/a/large", bytes(20 << 20, 2)).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        next.assert_has("jobs/a/large", &bytes(20 << 20, 2)).await;
        next.terminate().await;
        verify(&place).await;
    }
}

/// One a second is what Google Cloud Storage takes: more are refused and repeated, which nobody should have to wait for.
#[tokio::test(flavor = "multi_thread")]
async fn no_name_is_written_twice_within_a_second() {
    let place = on_gcs().await;
    let files = || place.service().objects().keys("stores/data/").len();
    for round in 0..2 {
        let daemon = Running::start(&place).await;
        for number in 0..5 {
            daemon.put(&format!("jobs/a/{number}"), bytes(5_000, round * 10 + number)).await.unwrap();
        }
        daemon.put("jobs/a/large", bytes(11 << 20, round)).await.unwrap();
        let before = files();
        daemon.store.delete(&Path::from("jobs/a/large")).await.unwrap();
        eventually("the file of a deleted object is deleted", SOON, || async { files() < before }).await;
        daemon.terminate().await;
    }

    assert_eq!(place.service().objects().hurried(), Vec::<String>::new());
    let put = |logged: &crate::faults::Logged| logged.op == Op::Put && logged.status == Some(StatusCode::OK);
    assert!(place.service().faults().count(put) > 20, "the service saw what was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_written_too_soon_is_written_a_moment_later() {
    let place = on_gcs().await;
    let opened = place.open().await;
    let esker::store::Placement::Object { store, prefix, can, .. } = opened.catalog else {
        panic!("not an object store")
    };
    let key = prefix.join("again");
    assert_eq!(can.rewrite_interval, crate::gcs::PAUSE);

    for number in 0..3 {
        store.put(&key, bytes(10, number).into()).await.unwrap();
    }

    assert_eq!(store.get(&key).await.unwrap().bytes().await.unwrap(), bytes(10, 2));
    assert!(place.service().objects().hurried().len() >= 2, "the service refused none of them");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_large_file_that_is_given_up_nothing_stays_and_nobody_completes_it_late() {
    for place in services().await {
        let (name, store) = (place.name, place.open().await.data);
        let FileWrites::Whole(files) = store.writes() else { panic!("{name} takes files whole") };
        let mut stale = files.begin(&id(1)).await.unwrap();
        stale.part(vec![bytes(5 << 20, 1)]).await.unwrap();
        let next = place.open().await.data;

        next.abort(&id(1), stale.id()).await.unwrap();
        next.abort(&id(1), stale.id()).await.unwrap_or_else(|error| panic!("{name}, once more: {error}"));
        let is_empty = |len: Option<u64>| len.is_none_or(|len| len == 0);
        assert!(is_empty(next.claim(&id(1)).await.unwrap()), "{name}");

        let late = stale.part(vec![bytes(100, 2)]).await;
        assert!(late.is_err() || stale.complete().await.is_err(), "{name}: it was completed late");
        assert!(is_empty(next.claim(&id(1)).await.unwrap()), "{name}: it is there");
        let mut given_up = files.begin(&id(2)).await.unwrap();
        given_up.part(vec![bytes(5 << 20, 1)]).await.unwrap();
        assert!(given_up.abort().await, "{name}");
        let unsent = files.begin(&id(3)).await.unwrap();
        assert!(unsent.abort().await, "{name}");
        assert_eq!(next.len(&id(3)).await.unwrap(), None, "{name}: a name that nobody knows is left alone");
        if let Some(service) = &place.service {
            // The part that came late waits for a list that never comes.
            let late = if next.capabilities().aborts_uploads { 0 } else { 1 };
            assert_eq!(service.objects().loose_parts(), late, "{name}");
        }
        let mut completed = files.begin(&id(4)).await.unwrap();
        completed.part(vec![bytes(5 << 20, 3)]).await.unwrap();
        completed.complete().await.unwrap();
        assert_eq!(next.read(&id(4), 0..5 << 20).await.unwrap(), bytes(5 << 20, 3), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_place_is_said_with_the_key_that_is_wrong() {
    let wrong = |error: esker::store::OpenError| esker::error::chain(&error);
    let (gcs, azure) = (on_gcs().await, on_azure().await);
    let key_file = gcs.folder.as_ref().unwrap().path().join("none.json").display().to_string();
    for (place, words) in [
        (gcs.with(&[("store.url", "gs://nowhere/x")]), "does not exist: create it, or correct store.url"),
        (azure.with(&[("store.url", "az://nowhere/x")]), "does not exist: create it, or correct store.url"),
        (Place::new("azure", &[("store.url", "az://state/x")]), "set store.azure.account"),
        (
            Place::new("gcs", &[("store.url", "gs://state/x"), ("store.gcs.service-account", &key_file)]),
            "none.json does not make a client: correct store.gcs.service-account",
        ),
    ] {
        let error = wrong(place.try_open().await.err().unwrap());
        assert!(error.contains(words), "{error}");
        // A daemon first looks which store is there.
        let settings = Config::load_with(None, [], &place.flags).unwrap().settings().unwrap();
        let error = esker::error::chain(&Engine::open(settings, EngineOptions::default()).await.err().unwrap());
        assert!(error.contains(words) && !error.contains("no credentials"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_ignores_conditions_is_refused_with_the_reason() {
    for conditions in [Conditions::CreateIgnored, Conditions::UpdateIgnored] {
        let places = [bucket(gcs::start(conditions).await), account(azure::start(conditions).await)];
        for place in places {
            let error = esker::error::chain(&place.try_open().await.err().unwrap());

            let name = place.name;
            assert!(error.contains("two daemons could both own the catalog"), "{name}, {conditions:?}: {error}");
            let left = place.service().objects().keys("");
            assert_eq!(left, Vec::<String>::new(), "{name}, {conditions:?}: something was left behind");
        }
    }
}
