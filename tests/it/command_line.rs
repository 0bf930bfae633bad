//! What the program says when it cannot start, and how it says it.

use std::io::{Read, Write};
use std::process::{Command, Output};

use crate::daemon::TestDaemon;
use crate::process;

fn esker(arguments: &[&str]) -> Output {
    process::esker().args(arguments).output().unwrap()
}

/// The exit code, and what it says of the error.
fn fails(arguments: &[&str]) -> (Option<i32>, String) {
    let output = esker(arguments);
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_wrong_configuration_is_refused_with_everything_that_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    std::fs::write(&path, "[limits]\nmemry = \"1gb\"\nbody-timeout = \"soon\"\n[server]\ns3 = \"nowhere\"\n").unwrap();

    for command in [&["config", "check"][..], &["config", "show"], &["serve"]] {
        let (code, text) = fails(&[command, &["--config", path.to_str().unwrap()]].concat());

        assert_eq!(code, Some(2), "{text}");
        for part in ["limits.memry", "limits.memory", "limits.body-timeout", "soon", "server.s3", "nowhere"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

#[test]
fn an_open_door_without_credentials_is_refused() {
    let (code, text) = fails(&["serve", "--set", "server.api=0.0.0.0:0", "--set", "store.url=memory:"]);

    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("server.api") && text.contains("auth.tokens"), "{text}");
}

#[test]
fn a_file_in_the_place_of_a_socket_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("precious");
    std::fs::write(&file, "bytes").unwrap();

    let socket = format!("server.api-unix-socket={}", file.display());
    let doors = ["--set", "server.api=127.0.0.1:0", "--set", "server.s3=127.0.0.1:0", "--set", "store.url=memory:"];
    let (code, text) = fails(&[&["serve", "--set", &socket][..], &doors].concat());

    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("server.api-unix-socket") && text.contains("no socket"), "{text}");
    assert_eq!(std::fs::read(&file).unwrap(), b"bytes");
}

#[test]
fn the_complete_configuration_of_the_repository_is_good() {
    let output = esker(&["config", "check", "--config", concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml")]);

    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_container_without_an_account_is_refused_and_missing_credentials_are_told() {
    let check = |settings: &[&str], environment: &[(&str, &str)]| {
        let mut command = process::esker();
        for (name, _) in std::env::vars()
            .filter(|(name, _)| ["AZURE", "AWS", "GOOGLE", "HOME"].iter().any(|of| name.starts_with(of)))
        {
            command.env_remove(name);
        }
        command.envs(environment.iter().copied()).args(["config", "check"]);
        command.args(settings.iter().flat_map(|setting| ["--set", setting]));
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.code(), text)
    };

    let connection = [("AZURE_STORAGE_CONNECTION_STRING", "AccountName=acme1;AccountKey=c2VjcmV0")];
    let (code, text) = check(&["store.url=az://state/x"], &connection);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("az://state/x") && text.contains("store.azure.account"), "{text}");
    assert!(text.contains("AZURE_STORAGE_CONNECTION_STRING is not read") && !text.contains("c2VjcmV0"), "{text}");

    let account = "store.azure.account=acme1";
    for (settings, key) in [
        (&["store.url=az://state/x", account][..], "store.azure.account-key"),
        (&["store.url=s3://state/x"], "AWS_ACCESS_KEY_ID"),
        (&["store.url=gs://state/x"], "store.gcs.service-account"),
        (&["store.url=file:x", "catalog.url=s3://state/x"], "s3://state/x: no credentials"),
    ] {
        let (code, text) = check(settings, &[]);
        assert_eq!(code, Some(0), "{settings:?}: {text}");
        assert!(text.contains("warning: ") && text.contains("no credentials were found"), "{settings:?}: {text}");
        assert!(text.contains(key), "{settings:?}: {text}");
    }
    for (settings, environment) in [
        (&["store.url=az://state/x", account, "store.azure.account-key=c2VjcmV0"][..], &[][..]),
        (
            &["store.url=az://state/x"],
            &[("AZURE_STORAGE_ACCOUNT_NAME", "acme1"), ("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")],
        ),
        (
            &["store.url=az://state/x", account],
            &[("AZURE_CLIENT_ID", "a"), ("AZURE_TENANT_ID", "b"), ("AZURE_FEDERATED_TOKEN_FILE", "/c")],
        ),
        (&["store.url=s3://state/x"], &[("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")]),
        (&["store.url=s3://state/x", "store.access-key=a", "store.secret-key=b"], &[]),
        (&["store.url=gs://state/x"], &[("GOOGLE_SKIP_SIGNATURE", "true")]),
    ] {
        let (code, text) = check(settings, environment);
        assert_eq!((code, text.contains("no credentials")), (Some(0), false), "{settings:?}: {text}");
    }
}

#[tokio::test]
async fn a_port_or_a_folder_in_use_is_named() {
    let daemon = TestDaemon::start(&[]).await;
    let (api, folder) = (daemon.api().to_string(), daemon.folder().to_str().unwrap().to_owned());

    let (code, text) = fails(&["dev", "--api", &api, "--s3", "127.0.0.1:0", "--data-dir", &folder]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(&api) && text.contains("server.api"), "{text}");

    let (code, text) = fails(&["dev", "--api", "127.0.0.1:0", "--s3", "127.0.0.1:0", "--data-dir", &folder]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("in use by another daemon"), "{text}");
    daemon.client.jobs().await.unwrap();
}

#[test]
fn a_start_that_waits_says_for_what_and_ends_with_a_signal() {
    use std::time::{Duration, Instant};
    // It takes connections and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let endpoint = format!("store.endpoint=http://{}", silent.local_addr().unwrap());
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let api = format!("server.api={free}");
    let sets = [
        "server.s3=127.0.0.1:0",
        &api,
        "auth.access-key=a",
        "auth.secret-key=b",
        "store.url=s3://bucket/prefix",
        "store.region=us-east-1",
        "store.allow-http=true",
        "store.access-key=a",
        "store.secret-key=b",
        &endpoint,
    ];
    let mut command = process::esker();
    command.arg("serve").args(sets.iter().flat_map(|set| ["--set", set])).stderr(std::fs::File::create(&log).unwrap());
    let mut child = command.spawn().unwrap();
    let said = || std::fs::read_to_string(&log).unwrap();
    let begun = Instant::now();
    let soon = |what: &str| {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}: {}", said());
        std::thread::sleep(Duration::from_millis(20));
    };
    while !said().contains("still looking which store is at s3://bucket/prefix") {
        assert!(child.try_wait().unwrap().is_none(), "{}", said());
        soon("it does not say what it waits for");
    }
    let mut stream = std::net::TcpStream::connect(free).unwrap();
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(" 503 ") && answer.contains("starting: looking which store is at s3://bucket"), "{answer}");

    assert!(Command::new("sh").args(["-c", &format!("kill -TERM {}", child.id())]).status().unwrap().success());

    while child.try_wait().unwrap().is_none() {
        soon("it does not end");
    }
    assert_eq!(child.wait().unwrap().code(), Some(1), "{}", said());
    assert!(said().contains("terminated during the start"), "{}", said());
}

#[test]
fn the_help_says_what_exit_codes_mean() {
    for command in [&[][..], &["dev"], &["serve"], &["put"], &["get"], &["ls"], &["verify"], &["rebuild"], &["restore"]]
    {
        let output = esker(&[command, &["--help"]].concat());
        let text = String::from_utf8(output.stdout).unwrap();

        assert!(text.contains("Exit codes:") && text.contains("2  it could not be tried"), "{command:?}: {text}");
    }
}

#[test]
fn without_a_daemon_to_talk_to_nothing_can_be_tried() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let api = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("to");
    let (to, file) = (to.to_str().unwrap(), concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml"));
    let commands = [
        &["put", "--job", "j", "--checkpoint", "1", file][..],
        &["get", "01JD0000000000000000000000"],
        &["ls"],
        &["du"],
        &["reclaim", "--dry-run"],
        &["gc", "--dry-run"],
        &["verify"],
        &["restore", "--job", "j", "--checkpoint", "1", "--to", to],
        &["export", "--job", "j", "--to", to],
    ];
    for command in commands {
        let (code, text) = fails(&[command, &["--api", &api]].concat());

        assert_eq!(code, Some(2), "{command:?}: {text}");
        assert!(text.contains("no answer from"), "{command:?}: {text}");
    }
    assert_eq!(fails(&["ls", "--api", "nowhere"]).0, Some(2));
    assert_eq!(fails(&["put", "--job", "j", "--checkpoint", "1", "/no/such/file", "--api", &api]).0, Some(2));
    assert_eq!(fails(&["inspect", "/no/such/file"]).0, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_daemon_does_not_have_went_wrong_and_what_makes_no_sense_could_not_be_tried() {
    let daemon = TestDaemon::start(&[]).await;
    let api = format!("http://{}", daemon.api());
    let code = |arguments: &[&str]| fails(&[arguments, &["--api", &api]].concat());

    let unknown = "01JD0000000000000000000000";
    for gone in [&["get", unknown][..], &["ls", "--job", "nobody"], &["du", "--job", "nobody"]] {
        let (code, text) = code(gone);
        assert_eq!(code, Some(1), "{gone:?}: {text}");
    }
    let (code, text) = code(&["get", "nonsense"]);
    assert_eq!(code, Some(2), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_says_whose_state_it_is() {
    let daemon = TestDaemon::start(&[]).await;
    let api = format!("http://{}", daemon.api());
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml");
    let put = ["put", "--api", &api, "--job", "j", "--checkpoint", "1", "--scope", "shared", file];
    let whose = ["--operator", "sum", "--subtask", "1", "--parallelism", "4", "--task-manager", "tm-7"];

    let stored = esker(&[&put[..], &whose].concat());
    assert_eq!(stored.status.code(), Some(0), "{}", String::from_utf8_lossy(&stored.stderr));
    let half = esker(&[&put[..], &whose[..2]].concat());
    assert_eq!(half.status.code(), Some(2), "{}", String::from_utf8_lossy(&half.stderr));

    let segments = daemon.client.segments("j", None, None).await.unwrap().segments;
    assert_eq!(segments.len(), 1);
    assert_eq!((segments[0].subtask.as_deref(), segments[0].scope.as_str()), (Some("sum_1_4"), "shared"));
}

/// Starts `esker dev` on a folder below limits of a shell; the caller ends it.
fn limited(folder: &std::path::Path, limit: &str) -> (std::process::Child, std::path::PathBuf) {
    let log = folder.join("log");
    let script = format!(r#"{limit}; exec "$0" "$@""#);
    let mut command = Command::new("sh");
    command.args(["-c", &script]).arg(process::esker().get_program());
    command.args(["dev", "--api", "127.0.0.1:0", "--s3", "127.0.0.1:0", "--ready-file"]).arg(folder.join("ready"));
    command.arg("--data-dir").arg(folder.join("data")).stdout(std::process::Stdio::null());
    let child = command.stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
    (child, log)
}

#[test]
fn a_limit_on_open_files_that_leaves_nothing_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();

    let (mut child, log) = limited(folder.path(), "ulimit -n 256");

    assert_eq!(child.wait().unwrap().code(), Some(2));
    let said = std::fs::read_to_string(log).unwrap();
    assert!(said.contains("ulimit -n") && said.contains("is 256") && said.contains("LimitNOFILE"), "{said}");
    assert!(!folder.path().join("data").exists(), "something was made");
}

#[tokio::test]
async fn a_file_that_may_not_grow_fails_its_write_and_not_the_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let (mut child, log) = limited(folder.path(), "ulimit -f 2048");
    let said = || std::fs::read_to_string(&log).unwrap();
    let begun = std::time::Instant::now();
    let ready = loop {
        if let Ok(text) = std::fs::read_to_string(folder.path().join("ready")) {
            break serde_json::from_str::<process::Ready>(&text).unwrap();
        }
        assert!(child.try_wait().unwrap().is_none(), "{}", said());
        assert!(begun.elapsed() < std::time::Duration::from_secs(60), "{}", said());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    let client = esker_client::Client::new(&ready.api, None).unwrap();
    client.create_job("j").await.unwrap();
    let small = client.put("j", &crate::daemon::checkpoint(1), None, vec![7; 100_000].into()).await.unwrap();

    let refused = client.put("j", &crate::daemon::checkpoint(1), None, vec![8; 3 << 20].into()).await.unwrap_err();

    assert!(
        matches!(&refused, esker_client::ClientError::Refused { status, .. } if status.as_u16() == 503),
        "{refused}"
    );
    assert!(said().contains("File too large"), "{}", said());
    assert_eq!(client.get(&small.segment).await.unwrap(), vec![7; 100_000]);
    client.put("j", &crate::daemon::checkpoint(1), None, vec![9; 100_000].into()).await.unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
}
