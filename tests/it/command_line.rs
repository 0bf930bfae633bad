//! What the program says when it cannot start, and how it says it.

use std::process::{Command, Output};

use crate::daemon::TestDaemon;

fn esker(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_esker")).args(arguments).output().unwrap()
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
    let sets = [
        "server.s3=127.0.0.1:0",
        "server.api=127.0.0.1:0",
        "auth.access-key=a",
        "auth.secret-key=b",
        "store.url=s3://bucket/prefix",
        "store.region=us-east-1",
        "store.allow-http=true",
        "store.access-key=a",
        "store.secret-key=b",
        &endpoint,
    ];
    let mut command = Command::new(env!("CARGO_BIN_EXE_esker"));
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

    assert!(Command::new("sh").args(["-c", &format!("kill -TERM {}", child.id())]).status().unwrap().success());

    while child.try_wait().unwrap().is_none() {
        soon("it does not end");
    }
    assert_eq!(child.wait().unwrap().code(), Some(1), "{}", said());
    assert!(said().contains("terminated during the start"), "{}", said());
}
