//! `esker bench`, from its command line to its report. How fast anything is, is not asserted.

// Helpers of tests may unwrap, too.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn bench(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_esker"));
    command.args(["bench", "--data-dir"]).arg(folder).args(arguments).output().unwrap()
}

#[test]
fn a_report_has_every_cell_every_target_and_every_round_and_nothing_is_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (data, json) = (folder.path().join("data"), folder.path().join("report.json"));

    let mut arguments =
        "--quick --sizes 4kb,64kb --clients 1,4 --rounds 2 --seconds 0.05".split(' ').collect::<Vec<_>>();
    arguments.extend(["--doors", "native,s3,s3-sha256", "--json", json.to_str().unwrap()]);
    let output = bench(&data, &arguments);

    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let cells: Vec<_> = report["cells"].as_array().unwrap().iter().map(cell_of).collect();
    assert_eq!(cells, [(4096, 1), (4096, 4), (65536, 1), (65536, 4)]);
    for target in report["cells"].as_array().unwrap().iter().flat_map(|cell| cell["targets"].as_array().unwrap()) {
        assert_eq!(target["rounds"].as_array().unwrap().len(), 2);
        assert!(target["rounds"].as_array().unwrap().iter().all(|round| round["answered"].as_u64() > Some(0)));
        assert_eq!(target["summary"]["failed"], 0, "{target}");
        assert_eq!(target["summary"]["of_sink"].is_null(), target["name"] == "sink");
        assert_eq!(target["summary"]["answers_per_write"].is_null(), target["name"] == "sink");
    }
    let table = String::from_utf8(output.stdout).unwrap();
    for name in ["sink", "native", "s3", "s3-sha256"] {
        assert_eq!(table.lines().filter(|line| line.split_whitespace().next() == Some(name)).count(), 4, "{table}");
    }
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0);
}

fn cell_of(cell: &Value) -> (u64, u64) {
    (cell["segment_bytes"].as_u64().unwrap(), cell["clients"].as_u64().unwrap())
}

#[test]
fn a_daemon_that_does_not_start_is_told_with_its_reason_and_nothing_is_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");

    let output = bench(&data, &["--quick", "--set", "limits.memory=nonsense"]);

    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("limits.memory") && error.contains("the native door"), "{error}");
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0);
}

#[test]
fn a_folder_for_the_report_that_is_not_there_is_told_before_anything_is_measured() {
    let folder = tempfile::tempdir().unwrap();

    let output = bench(folder.path(), &["--json", "/no/such/folder/report.json"]);

    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/no/such/folder/report.json"));
}
