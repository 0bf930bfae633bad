//! Checkpoints of Flink's that move into Esker and out of it. Their `_metadata` are files that Flink has written
//! (`tests/data/flink-metadata`).

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use esker::config::{Config, StoreUrl};
use esker::flink::{WrittenPath, relocate_metadata};
use esker::store::WholeStore;
use esker_test_support::checkpoint::{CheckpointOnDisk, JOB, LARGE, SAMPLES};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path as Key;
use object_store::{Attributes, ClientOptions, ObjectStoreExt, RetryConfig};
use serde_json::{Value, json};

use crate::daemon::TestDaemon;
use crate::{daemon, process};

/// A daemon with the buckets `state` and `other`.
struct Target {
    daemon: TestDaemon,
}

impl Target {
    async fn new() -> Self {
        let flags =
            [("server.buckets", "[\"state\", \"other\"]"), ("auth.access-key", "ak"), ("auth.secret-key", "sk")];
        Self { daemon: TestDaemon::start(&flags).await }
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.daemon.s3())
    }

    fn client(&self, bucket: &str) -> AmazonS3 {
        let builder = AmazonS3Builder::new().with_bucket_name(bucket).with_region("us-east-1");
        let builder = builder.with_endpoint(self.endpoint()).with_access_key_id("ak").with_secret_access_key("sk");
        let builder = builder.with_client_options(ClientOptions::new().with_allow_http(true));
        builder.with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() }).build().unwrap()
    }

    async fn read(&self, bucket: &str, key: &str) -> Option<Vec<u8>> {
        match self.client(bucket).get(&Key::parse(key).unwrap()).await {
            Ok(found) => Some(found.bytes().await.unwrap().to_vec()),
            Err(object_store::Error::NotFound { .. }) => None,
            Err(error) => panic!("{key}: {error}"),
        }
    }

    async fn put(&self, key: &str, bytes: &[u8]) {
        self.client("state").put(&Key::parse(key).unwrap(), bytes.to_vec().into()).await.unwrap();
    }

    /// Objects of both buckets, as the daemon lists them.
    async fn keys(&self) -> Vec<String> {
        let mut keys = vec![];
        for bucket in ["state", "other"] {
            let page = self.daemon.client.objects(bucket, "", None).await.unwrap();
            keys.extend(page.objects.into_iter().map(|object| object.key));
        }
        keys
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        run(&[arguments, &["--endpoint", &self.endpoint(), "--access-key", "ak", "--secret-key", "sk"]].concat()).await
    }

    /// The report of a run that went well.
    async fn reports(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat()).await;
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What it says that was not carried out.
    async fn refuses(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        said(&output)
    }
}

async fn run(arguments: &[&str]) -> Output {
    let mut esker = process::esker();
    esker.args(arguments).env_remove("ESKER_S3");
    tokio::task::spawn_blocking(move || esker.output()).await.unwrap().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_every_version_goes_in_and_comes_out_as_it_was() {
    for sample in SAMPLES {
        let (source, target) = (CheckpointOnDisk::new(sample), Target::new().await);
        let before = source.all();
        let import = ["import", &source.url(), "--to", "s3a://state/a/b"];
        let files = source.files.len();
        let bytes: usize = source.files.values().map(Vec::len).sum();
        let report = |there: usize, dry_run: bool| {
            let to = format!("s3a://state/a/b/{JOB}/chk-7");
            json!({"checkpoint": 7, "to": to, "files": files, "bytes": bytes, "there": there, "dry_run": dry_run})
        };

        assert_eq!(target.reports(&[&import[..], &["--dry-run"]].concat()).await, report(0, true));
        assert_eq!(target.keys().await, Vec::<String>::new());
        assert_eq!(target.reports(&import).await, report(0, false));
        assert_eq!(target.reports(&import).await, report(files, false));
        assert_eq!(target.reports(&[&import[..], &["--dry-run"]].concat()).await, report(files, true));

        for (name, bytes) in &source.files {
            let read = target.read("state", &format!("a/b/{name}")).await;
            assert!(read.as_ref() == Some(bytes), "{name}");
        }
        let moved = target.read("state", &format!("a/b/{JOB}/chk-7/_metadata")).await.unwrap();
        let text = String::from_utf8_lossy(&moved).into_owned();
        assert!(!text.contains("file:") && text.contains("s3a://state/a/b"), "it still names its source");
        assert_eq!(target.keys().await.len(), files + 1);
        let api = format!("http://{}", target.daemon.api());
        let audit = run(&["audit", "--api", &api]).await;
        assert_eq!(audit.status.code(), Some(0), "{}", said(&audit));
        assert!(source.all() == before, "the source changed");

        // Out again: over what is there, where nothing has to be written, and to another place.
        let export = |to: String| {
            let checkpoint = format!("s3://state/a/b/{JOB}/chk-7");
            let target = &target;
            async move { target.reports(&["export", &checkpoint, "--to", &to]).await }
        };
        let home = format!("file:{}", source.path("").display());
        assert_eq!(export(home).await["there"], json!(files));
        assert!(source.all() == before, "the source changed");
        let elsewhere = tempfile::tempdir().unwrap();
        let to = format!("file://{}", elsewhere.path().join("x").display());
        assert_eq!(export(to).await["there"], json!(0));
        for (name, bytes) in &source.files {
            assert!(std::fs::read(elsewhere.path().join("x").join(name)).unwrap() == *bytes, "{name}");
        }
        assert_eq!(daemon::files(elsewhere.path()).len(), files + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_moves_between_s3_servers() {
    let (source, one, other) = (CheckpointOnDisk::new(SAMPLES[2]), Target::new().await, Target::new().await);
    one.reports(&["import", &source.url(), "--to", "s3://other/jobs"]).await;
    let endpoint = format!("endpoint={}", one.endpoint());
    let keys = ["region=us-east-1", "access-key=ak", "secret-key=sk", &endpoint];
    let of_source: Vec<&str> = keys.iter().flat_map(|key| ["--source", key]).collect();
    let checkpoint = format!("s3://other/jobs/{JOB}/chk-7");
    let copy = format!("s3://state/{JOB}/chk-7");

    let import = [&["import", &checkpoint, "--to", "s3://state", "--at-once", "3"][..], &of_source].concat();
    let done = other.reports(&import).await;

    assert_eq!(done["to"], json!(format!("s3://state/{JOB}/chk-7")));
    for (name, bytes) in &source.files {
        assert!(other.read("state", name).await.as_ref() == Some(bytes), "{name}");
    }
    // Back into the first one, where it came from.
    let to_first: Vec<&str> = keys.iter().flat_map(|key| ["--target", key]).collect();
    let export = [&["export", &copy, "--to", "s3://other/jobs"][..], &to_first].concat();
    assert_eq!(other.reports(&export).await["there"], json!(source.files.len()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_whole_is_told_and_nothing_of_it_is_copied() {
    let (source, target) = (CheckpointOnDisk::new(SAMPLES[2]), Target::new().await);
    let mut names = source.files.keys();
    let (gone, short) = (names.next().unwrap(), names.find(|name| source.files[*name].len() > 20).unwrap());
    std::fs::remove_file(source.path(gone)).unwrap();
    source.write(short, &source.files[short][1..]);
    if source.files[short].len() == LARGE {
        source.write(short, b"");
    }

    let said = target.refuses(1, &["import", &source.url(), "--to", "s3://state"]).await;

    assert!(said.contains("2 of the files"), "{said}");
    assert!(said.contains(gone) && said.contains("(not there)"), "{said}");
    assert!(said.contains(short) && said.contains("are named)"), "{said}");
    assert_eq!(target.keys().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn files_on_another_kind_of_storage_are_told() {
    let (source, target) = (CheckpointOnDisk::new(SAMPLES[2]), Target::new().await);
    let moved = relocate_metadata(&source.metadata, &mut |path| match path {
        WrittenPath::File(uri) if uri.ends_with("/nested") => Some("hdfs://there/flink/nested".to_owned()),
        _ => None,
    });
    source.write(&format!("{JOB}/chk-7/_metadata"), &moved.unwrap());

    let said = target.refuses(1, &["import", &source.url(), "--to", "s3://state"]).await;

    assert!(said.contains("hdfs://there/flink/nested (not on this storage)"), "{said}");
    assert_eq!(target.keys().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ended_half_done_is_no_checkpoint_and_a_repeat_goes_on() {
    let (source, target) = (CheckpointOnDisk::new(SAMPLES[2]), Target::new().await);
    let in_the_way = source.files.keys().next_back().unwrap();
    let key = format!("jobs/{in_the_way}");
    target.put(&key, &vec![7; LARGE]).await;
    let import = ["import", &source.url(), "--to", "s3://state/jobs", "--at-once", "1"];

    let said = target.refuses(1, &import).await;

    assert!(said.contains(&key) && said.contains("is there with other content"), "{said}");
    let metadata = format!("jobs/{JOB}/chk-7/_metadata");
    assert_eq!(target.read("state", &metadata).await, None);
    assert!(target.read("state", &key).await.unwrap() == vec![7; LARGE], "it was overwritten");
    let copied = target.keys().await.len() - 1;
    assert!(copied > 0);
    target.client("state").delete(&Key::parse(&key).unwrap()).await.unwrap();
    assert_eq!(target.reports(&import).await["there"], json!(copied));
    assert!(target.read("state", &metadata).await.is_some());

    // A file that says nothing of where it came from is read.
    let bytes = &source.files[in_the_way];
    target.client("state").delete(&Key::parse(&key).unwrap()).await.unwrap();
    target.put(&key, bytes).await;
    assert_eq!(target.reports(&import).await["there"], json!(source.files.len()));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_checkpoint_in_its_place_is_left_alone() {
    let (source, target) = (CheckpointOnDisk::new(SAMPLES[2]), Target::new().await);
    let (metadata, url) = (format!("{JOB}/chk-7/_metadata"), source.url());
    target.put(&metadata, SAMPLES[0]).await;

    for more in [&[][..], &["--dry-run"]] {
        let import = [&["import", &url, "--to", "s3://state"][..], more].concat();
        let said = target.refuses(1, &import).await;
        assert!(said.contains(&metadata) && said.contains("other content"), "{said}");
    }

    assert_eq!(target.keys().await, std::slice::from_ref(&metadata));
    assert_eq!(target.read("state", &metadata).await.unwrap(), SAMPLES[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_tried_is_told_from_what_went_wrong() {
    let (source, target) = (CheckpointOnDisk::new(SAMPLES[2]), Target::new().await);
    let home = format!("file:{}", source.path(JOB).display());

    let told = target.refuses(2, &["import", &home, "--to", "s3://state"]).await;
    assert!(told.contains("no _metadata") && told.contains(&format!("{home}/chk-7")), "{told}");
    let told = target.refuses(2, &["import", "chk-7", "--to", "s3://state"]).await;
    assert!(told.contains("no scheme"), "{told}");
    let told = target.refuses(2, &["import", &source.url(), "--to", "hdfs://n/x"]).await;
    assert!(told.contains("is not in Esker"), "{told}");
    let told = target.refuses(2, &["import", &source.url(), "--to", "s3://state", "--source", "endpont=x"]).await;
    assert!(told.contains("store.endpont"), "{told}");
    let told = target.refuses(2, &["export", "--bucket", "state", "--to", "x", "--dry-run"]).await;
    assert!(told.contains("are for a checkpoint"), "{told}");
    let told = target.refuses(1, &["import", &source.url(), "--to", "s3://nowhere"]).await;
    assert!(told.contains("its bucket does not exist"), "{told}");
    let output = run(&["import", &source.url(), "--to", "s3://state", "--endpoint", &target.endpoint()]).await;
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));

    std::fs::write(source.path(&format!("{JOB}/chk-7/_metadata")), &source.metadata[..99]).unwrap();
    let told = target.refuses(1, &["import", &source.url(), "--to", "s3://state"]).await;
    assert!(told.contains("damaged at byte"), "{told}");
    let endpoint = target.endpoint();
    drop(target.daemon.shut_down().await);
    let output = run(&["export", "s3://state/x", "--to", "file:/x", "--endpoint", &endpoint]).await;
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
}

/// Makes something that is no file, and what keeps it there.
fn irregular(path: &Path, what: &str) -> Option<UnixListener> {
    match what {
        "a pipe" => assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
        "a socket" => return Some(UnixListener::bind(path).unwrap()),
        "a device" => std::os::unix::fs::symlink("/dev/zero", path).unwrap(),
        _ => std::fs::create_dir(path).unwrap(),
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_file_is_told_on_either_side_and_nobody_waits_for_it() {
    for what in ["a pipe", "a socket", "a device", "a folder"] {
        let (source, target) = (CheckpointOnDisk::new(SAMPLES[2]), Target::new().await);
        let url = source.url();
        let name = source.files.keys().next().unwrap();
        target.reports(&["import", &url, "--to", "s3://other"]).await;

        // Among the files of a checkpoint, in place of its `_metadata`, and of the folder.
        for (below, code) in [(name.clone(), 1), (format!("{JOB}/chk-7/_metadata"), 2), (format!("{JOB}/chk-8"), 2)] {
            let at = source.path(&below);
            let (aside, is_folder) = (at.with_extension("aside"), below.ends_with("chk-8"));
            if !is_folder {
                std::fs::rename(&at, &aside).unwrap();
            }
            let held = irregular(&at, what);
            let from = if is_folder { url.replace("chk-7", "chk-8") } else { url.clone() };

            let said = soon(target.refuses(code, &["import", &from, "--to", "s3://state"])).await;

            assert!(said.contains(&below), "{said}");
            assert!(is_folder || said.contains(&format!("is {what} and not a regular file")), "{said}");
            assert_eq!(target.keys().await.len(), source.files.len() + 1, "something was copied");
            drop(held);
            std::fs::remove_file(&at).or_else(|_| std::fs::remove_dir(&at)).unwrap();
            if !is_folder {
                std::fs::rename(&aside, &at).unwrap();
            }
        }

        let elsewhere = tempfile::tempdir().unwrap();
        let in_the_way = elsewhere.path().join(name);
        std::fs::create_dir_all(in_the_way.parent().unwrap()).unwrap();
        let _held = irregular(&in_the_way, what);
        let (checkpoint, to) = (format!("s3://other/{JOB}/chk-7"), format!("file:{}", elsewhere.path().display()));
        for more in [&["--dry-run"][..], &[]] {
            let said = soon(target.refuses(1, &[&["export", &checkpoint, "--to", &to][..], more].concat())).await;
            assert!(said.contains(name) && said.contains(&format!("is {what} and not a regular file")), "{said}");
        }
        assert!(!elsewhere.path().join(format!("{JOB}/chk-7/_metadata")).exists());
    }
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("it waits for what is no file")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_appears_on_a_disk_while_it_is_written_is_left_alone() {
    let (folder, path) = (tempfile::tempdir().unwrap(), object_store::path::Path::parse);
    let at = folder.path().join("large");
    let url = StoreUrl::File("/".into());
    let settings = Config::load_with(None, [], &[("store.url".to_owned(), url.to_string())]).unwrap();
    let store = WholeStore::open(&settings.settings().unwrap().store).unwrap();
    for taken in [true, false] {
        let mut new = store.begin(&path(at.to_str().unwrap()).unwrap(), Attributes::new()).await.unwrap();
        new.put_part(vec![1; 1000].into()).await.unwrap();
        if taken {
            std::fs::write(&at, "other").unwrap();
        }

        let complete = new.complete().await;

        assert_eq!(complete.is_err(), taken, "{complete:?}");
        if taken {
            assert!(matches!(complete, Err(object_store::Error::AlreadyExists { .. })), "{complete:?}");
            assert!(new.abort().await);
        }
        let (left, expected) = (std::fs::read(&at).unwrap(), if taken { b"other".to_vec() } else { vec![1; 1000] });
        assert_eq!(left, expected);
        assert_eq!(daemon::files(folder.path()), std::slice::from_ref(&at), "something hidden stays");
        std::fs::remove_file(&at).unwrap();
    }
}
