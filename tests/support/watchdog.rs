//! An end for what hangs: says what everybody was doing, and ends the test.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// Until it is dropped, something may take this long and no longer.
#[derive(Debug)]
pub struct Watchdog {
    _over: Sender<()>,
}

impl Watchdog {
    /// Lets `what` take at most `patience`. After that the test is over: the last lines of `log` are shown, and where each
    /// thread of this process and of its children stands. Nothing that hangs can be asked to stop, so the process ends.
    pub fn watch(what: String, patience: Duration, log: PathBuf) -> Self {
        let (over, ended) = channel::<()>();
        std::thread::spawn(move || {
            if ended.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                let children = children();
                let mut report = format!("\n{what} takes longer than {patience:?}\n");
                report.push_str(&last_lines(&log));
                for process in std::iter::once(std::process::id()).chain(children.iter().copied()) {
                    report.push_str(&threads(process));
                }
                // Not through `eprintln!`, which a test keeps for itself.
                drop(std::io::stderr().write_all(report.as_bytes()));
                for child in children {
                    drop(Command::new("sh").args(["-c", &format!("kill -KILL {child}")]).status());
                }
                std::process::exit(101);
            }
        });
        Self { _over: over }
    }
}

fn last_lines(log: &Path) -> String {
    let all = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = all.lines().collect();
    lines[lines.len().saturating_sub(100)..].join("\n") + "\n"
}

/// The processes that this one started and that still run.
fn children() -> Vec<u32> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    children.flat_map(|ids| ids.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Where each thread of a process stands: its stack where there is `gdb`, else what it waits for in the kernel.
fn threads(process: u32) -> String {
    if let Some(stacks) = stacks(process) {
        return format!("process {process}:\n{stacks}\n");
    }
    let mut shown = format!("process {process} (no gdb for its stacks):\n");
    for task in std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten() {
        let read = |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let (name, waits_in, call) = (read("comm"), read("wchan"), read("syscall"));
        shown += &format!("  {} {waits_in} {}\n", name.trim(), call.trim());
    }
    shown
}

/// By way of a file: while `gdb` looks at this process, nobody reads a pipe.
fn stacks(process: u32) -> Option<String> {
    let path = std::env::temp_dir().join(format!("stacks-of-{process}"));
    let file = std::fs::File::create(&path).ok()?;
    let of_all = ["-batch", "-ex", "thread apply all backtrace 40", "-p", &process.to_string()];
    let told = Command::new("gdb").args(of_all).stdin(Stdio::null()).stdout(file).stderr(Stdio::null()).status();
    let stacks = std::fs::read_to_string(&path).ok();
    drop(std::fs::remove_file(path));
    stacks.filter(|_| told.is_ok_and(|status| status.success()))
}
