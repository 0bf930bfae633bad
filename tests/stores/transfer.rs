//! Checkpoints of Flink's that move between a daemon and each object storage service, by the program itself.

use std::process::{Child, Output, Stdio};
use std::time::Duration;

use bytes::Bytes;
use esker::config::Config;
use esker::store::WholeStore;
use esker::transfer::StorageLocation;
use esker_test_support::checkpoint::{CheckpointOnDisk, JOB, SAMPLES};
use esker_test_support::daemon::TestDaemon;
use esker_test_support::process::esker;
use http::StatusCode;
use object_store::path::Path;
use object_store::{Attributes, Error, ObjectStoreExt};
use serde_json::Value;

use crate::bytes;
use crate::faults::{Fault, Faults, Gate, Op, Rule, any};
use crate::place::{Place, on_azure, on_gcs, on_s3, places, s3, services};
use crate::s3_server::{Conditions, S3Server};

/// Nothing here takes long unless it hangs.
const SOON: Duration = Duration::from_secs(120);

/// A daemon with a checkpoint in it.
struct Moved {
    source: CheckpointOnDisk,
    daemon: TestDaemon,
}

impl Moved {
    /// `large` of its files come in parts.
    async fn with_large(large: usize) -> Self {
        let flags =
            [("server.buckets", "[\"state\", \"other\"]"), ("auth.access-key", "ak"), ("auth.secret-key", "sk")];
        let daemon = TestDaemon::start(&flags).await;
        let moved = Self { source: CheckpointOnDisk::with_large(SAMPLES[2], large), daemon };
        moved.reports(&["import", &moved.source.url(), "--to", "s3://state/a"]).await;
        moved
    }

    fn spawn(&self, arguments: &[&str]) -> Child {
        let mut command = esker();
        let endpoint = format!("http://{}", self.daemon.s3());
        command.args(arguments).args(["--endpoint", &endpoint, "--access-key", "ak", "--secret-key", "sk"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        ended(self.spawn(arguments)).await
    }

    async fn reports(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat()).await;
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The arguments that bring the checkpoint to a place.
    fn export(&self, place: &Place) -> Vec<String> {
        let fixed = ["export", &format!("s3://state/a/{JOB}/chk-7"), "--to", url(place)].map(str::to_owned);
        fixed.into_iter().chain(keys(place, "--target")).collect()
    }

    /// The name and the bytes of one of the large files.
    fn large(&self) -> (String, &Vec<u8>) {
        let (below, bytes) = self.source.files.iter().next_back().unwrap();
        (format!("stores/{below}"), bytes)
    }
}

async fn ended(child: Child) -> Output {
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output());
    tokio::time::timeout(SOON, ended).await.expect("it hangs").unwrap().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn url(place: &Place) -> &str {
    &place.flags.iter().find(|(key, _)| key == "store.url").unwrap().1
}

/// The other flags of a place, each with `name` before it. It repeats for a short while.
fn keys<'a>(place: &'a Place, name: &'a str) -> impl Iterator<Item = String> + 'a {
    let flags = place.flags.iter().filter(|(key, _)| key != "store.url");
    let flags = flags.map(|(key, value)| format!("{}={value}", key.strip_prefix("store.").unwrap()));
    let flags = flags.chain(["allow-http=true".to_owned(), "retry-timeout=5 s".to_owned()]);
    flags.flat_map(move |flag| [name.to_owned(), flag])
}

fn refs(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

fn whole(place: &Place) -> WholeStore {
    let settings = Config::load_with(None, [], &place.flags).unwrap().settings().unwrap();
    WholeStore::open(&settings.store).unwrap()
}

/// What is under a name of a place.
async fn read(place: &Place, path: &str) -> Bytes {
    let objects = whole(place).objects;
    objects.get(&Path::parse(path).unwrap()).await.unwrap().bytes().await.unwrap()
}

/// Puts something under a name, whoever is writing there.
fn insert(place: &Place, path: &str, bytes: Bytes) {
    match &place.server {
        Some(server) => server.objects().insert(path, bytes),
        None => place.service().objects().insert(path, bytes),
    }
}

fn faults(place: &Place) -> &Faults {
    place.server.as_ref().map_or_else(|| place.service().faults(), S3Server::faults)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_goes_out_to_every_service_and_comes_in_again() {
    let moved = Moved::with_large(1).await;
    for place in services().await {
        let (name, files) = (place.name, moved.source.files.len());

        let out = moved.reports(&refs(&moved.export(&place))).await;
        let again = moved.reports(&refs(&moved.export(&place))).await;

        assert_eq!((&out["there"], &again["there"]), (&0.into(), &files.into()), "{name}");
        let to = out["to"].as_str().unwrap().to_owned();
        // As Flink writes it.
        assert!(to.starts_with("s3://") || to.starts_with("gs://") || to.starts_with("abfss://state@"), "{to}");
        let prefix = url(&place).rsplit('/').next().unwrap();
        let metadata = read(&place, &format!("{prefix}/{JOB}/chk-7/_metadata")).await;
        let text = String::from_utf8_lossy(&metadata).into_owned();
        assert!(text.contains(to.trim_end_matches(&format!("/{JOB}/chk-7"))), "{name}: it names another place");
        for (below, bytes) in &moved.source.files {
            assert!(read(&place, &format!("{prefix}/{below}")).await == *bytes, "{name}: {below}");
        }

        let home = format!("s3://other/{name}");
        let import = ["import", &to, "--to", &home].map(str::to_owned);
        let import: Vec<String> = import.into_iter().chain(keys(&place, "--source")).collect();
        let back = moved.reports(&refs(&import)).await;

        assert_eq!((&back["there"], &back["files"]), (&0.into(), &files.into()), "{name}");
        // Once more: all of it is there, and says what it was copied from.
        assert_eq!(moved.reports(&refs(&import)).await["there"], files, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_appears_while_a_file_is_copied_is_not_replaced() {
    let moved = Moved::with_large(1).await;
    let (key, whole) = moved.large();
    for same in [false, true] {
        let ignorant = s3(S3Server::start_with(Conditions::CreateIgnored).await);
        // Where there is no condition it is looked for just before: what comes after that look is replaced.
        for (place, op) in [
            (on_s3().await, Op::CompleteUpload),
            (on_azure().await, Op::CompleteUpload),
            (on_gcs().await, Op::UploadPart),
            (ignorant, Op::UploadPart),
        ] {
            let gate = Gate::closed();
            faults(&place).add(Rule::on(op, any).times(1), Fault::Held(gate.clone()));
            let export = moved.spawn(&refs(&moved.export(&place)));
            gate.arrived(1).await;
            let other = if same { Bytes::from(whole.clone()) } else { bytes(whole.len(), 9) };
            insert(&place, &key, other.clone());
            gate.open();

            let output = ended(export).await;

            let (name, said) = (place.name, said(&output));
            assert_eq!(output.status.code(), Some(i32::from(!same)), "{name}: {said}");
            assert!(same || (said.contains(&key) && said.contains("other content")), "{name}: {said}");
            assert!(read(&place, &key).await == other, "{name}: it was replaced");
        }
    }
}

#[tokio::test]
async fn a_file_in_parts_that_finds_its_name_taken_is_refused_by_every_store() {
    for place in places().await.into_iter().filter(|place| place.name != "memory") {
        let (name, store) = (place.name, whole(&place));
        let location = StorageLocation::of(url(&place)).unwrap().join("parts");
        let path = Path::parse(location.path()).unwrap();
        let other = bytes(100, 2);
        let mut new = store.begin(&path, Attributes::new()).await.unwrap();
        new.put_part(bytes(6 << 20, 1)).await.unwrap();
        store.objects.put(&path, other.clone().into()).await.unwrap();

        let complete = new.complete().await;

        let refused = matches!(complete, Err(Error::AlreadyExists { .. } | Error::Precondition { .. }));
        assert!(refused, "{name}: {complete:?}");
        // Of Azure nobody can say so.
        assert_eq!(new.abort().await, !name.starts_with("azur"), "{name}");
        assert!(read(&place, location.path()).await == other, "{name}: it was replaced");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_whose_last_answer_is_lost_is_found_complete() {
    let moved = Moved::with_large(1).await;
    let (key, whole) = moved.large();
    for place in [on_s3().await, on_gcs().await, on_azure().await] {
        let lost = faults(&place).add(Rule::on(Op::CompleteUpload, any).times(1), Fault::AckLost);

        let out = moved.reports(&refs(&moved.export(&place))).await;

        assert_eq!((lost.hits(), &out["there"]), (1, &0.into()), "{}", place.name);
        assert!(read(&place, &key).await == *whole, "{}", place.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_fails_gives_up_the_uploads_that_it_has_begun() {
    let moved = Moved::with_large(4).await;
    for aborts in [true, false] {
        let place = on_s3().await;
        faults(&place).add(Rule::on(Op::UploadPart, any).after(3), Fault::Refused);
        if !aborts {
            faults(&place).add(Rule::on(Op::AbortUpload, any), Fault::Refused);
        }

        let output = moved.run(&refs(&moved.export(&place))).await;

        let (left, said) = (place.server.as_ref().unwrap().objects().open_uploads(), said(&output));
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("cannot be written"), "{said}");
        let begun = faults(&place).count(|logged| logged.op == Op::CreateUpload);
        assert!(begun > 1, "one upload is nothing to leave behind");
        assert_eq!(left.len(), if aborts { 0 } else { begun }, "{said}");
        assert_eq!(said.contains("could not be given up"), !aborts, "{said}");
        assert!(left.iter().all(|key| said.contains(key)), "{said}");
    }

    // Azure gives nothing up, so what was begun there is named.
    let place = on_azure().await;
    faults(&place).add(Rule::on(Op::UploadPart, any).after(3), Fault::Refused);
    let output = moved.run(&refs(&moved.export(&place))).await;
    let said = said(&output);
    assert!(place.service().objects().loose_parts() > 0);
    assert!(said.contains("could not be given up") && said.contains(&moved.large().0), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_is_interrupted_gives_up_what_it_has_begun_or_names_it() {
    let moved = Moved::with_large(3).await;
    for waits in [true, false] {
        let place = on_s3().await;
        let gate = Gate::closed();
        faults(&place).add(Rule::on(Op::UploadPart, any), Fault::Held(gate.clone()));
        let export = moved.spawn(&refs(&moved.export(&place)));
        gate.arrived(3).await;

        signal(&export, "INT");
        if waits {
            gate.open();
        } else {
            // Who cannot wait says so once more.
            signal(&export, "TERM");
        }
        let output = ended(export).await;

        let (left, said) = (place.server.as_ref().unwrap().objects().open_uploads(), said(&output));
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("interrupted"), "{said}");
        assert_eq!(left.len(), if waits { 0 } else { 3 }, "{said}");
        assert!(left.iter().all(|key| said.contains(key)), "{said}");
        let metadata = |key: &str| key.ends_with("_metadata");
        assert_eq!(faults(&place).count(|logged| logged.was(Op::Put, metadata, StatusCode::OK)), 0);
        gate.open();
    }
}

fn signal(child: &Child, name: &str) {
    let kill = format!("kill -{name} {}", child.id());
    assert!(std::process::Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}
