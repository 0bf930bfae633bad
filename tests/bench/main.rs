//! `esker bench` and `esker bench churn`, from command line to report. How fast anything is, is not asserted.

// Helpers of tests may unwrap, too.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Output;

use esker_test_support::process::esker;
use serde_json::Value;

fn bench(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = esker();
    command.args(["bench", "--data-dir"]).arg(folder).args(arguments).output().unwrap()
}

#[test]
fn a_report_has_every_cell_every_target_and_every_round_and_nothing_is_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (data, json) = (folder.path().join("data"), folder.path().join("report.json"));

    let mut arguments =
        "--quick --sizes 4kb,64kb --clients 1,4 --rounds 2 --seconds 0.2".split(' ').collect::<Vec<_>>();
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

fn churn(folder: &Path, arguments: &str) -> (Value, String) {
    let json = folder.join("churn.json");
    let mut command = esker();
    command.args(["bench", "churn"]).args(arguments.split(' ')).arg("--data-dir").arg(folder.join("data"));
    let output = command.arg("--json").arg(&json).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    (report, String::from_utf8(output.stdout).unwrap())
}

fn figure(value: &Value, name: &str) -> f64 {
    value.pointer(name).and_then(Value::as_f64).unwrap_or_else(|| panic!("{name} of {value}"))
}

/// The bench itself reads every living segment in the end, checks the catalog, and compares it with storage; it fails if
/// anything is lost or left.
#[test]
fn space_stays_within_its_limit_after_catching_up_and_nothing_that_lives_is_lost_nor_anything_else_left() {
    let folder = tempfile::tempdir().unwrap();

    let (report, text) = churn(folder.path(), "--preset flink --checkpoints 60 --subtasks 16 --limit 1.2,2.0");

    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2, "{text}");
    for run in runs {
        assert!(figure(run, "/amplification_after/max") <= figure(run, "/limit"), "{text}");
        assert_eq!(figure(run, "/checkpoints"), 50.0);
        // Of each subtask ten segments, and three of each of the nine retained checkpoints before.
        assert_eq!(figure(run, "/verified/segments"), 16.0 * 37.0);
        assert_eq!(figure(run, "/verified/bytes"), 16.0 * 37.0 * 65_536.0);
        assert!(figure(run, "/verified/files") > 0.0);
    }
    assert!(
        figure(&runs[0], "/reclaimed/written_bytes") > 0.0 && figure(&runs[1], "/files_died_whole") > 0.0,
        "{text}"
    );
    let flink = report["flink"].as_array().unwrap();
    assert_eq!(
        flink.iter().map(|flink| flink["boundary"].as_str().unwrap()).collect::<Vec<_>>(),
        ["within", "across", "within", "across"]
    );
    let across = &flink[3];
    assert!(figure(across, "/amplification/max") > 2.0 * figure(&runs[1], "/amplification_between/max"), "{text}");
    assert_eq!(figure(across, "/refused"), 0.0);
}

#[test]
fn on_a_local_disk_dead_ranges_are_given_back_with_holes_and_without() {
    let folder = tempfile::tempdir().unwrap();

    let arguments = "--store local --checkpoints 25 --subtasks 2 --segments 40 --retain 3 --limit 1.3";
    let (report, text) = churn(folder.path(), arguments);

    let runs = report["runs"].as_array().unwrap();
    assert!(runs.iter().all(|run| figure(run, "/amplification_after/max") <= 1.3), "{text}");
    assert_eq!(figure(&runs[1], "/reclaimed/punched_bytes"), 0.0);
    assert!(figure(&runs[1], "/reclaimed/written_bytes") > 0.0, "{text}");
    let (holes, copies) = (figure(&runs[0], "/reclaimed/written_bytes"), figure(&runs[1], "/reclaimed/written_bytes"));
    assert!(holes <= copies, "{text}");
    assert_eq!(std::fs::read_dir(folder.path().join("data")).unwrap().count(), 0);
}

#[test]
fn the_same_seed_gives_the_same_figures() {
    let figures = |seed: u32| {
        let folder = tempfile::tempdir().unwrap();
        let arguments = format!("--checkpoints 20 --subtasks 2 --segments 40 --retain 3 --limit 1.3 --seed {seed}");
        let (mut report, _) = churn(folder.path(), &arguments);
        for run in report["runs"].as_array_mut().unwrap() {
            run["real_seconds"].take();
            run["reclaimed"]["real_seconds"].take();
        }
        report
    };

    assert_eq!(figures(3), figures(3));
    assert_ne!(figures(3), figures(4));
}
