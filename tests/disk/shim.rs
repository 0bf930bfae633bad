//! A library in front of libc whose syncs, or writes, fail or hang when they are told to, and that writes down what is written in place.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static int ours(int fd, char *path, size_t room) {
    char link[64];
    const char *of = getenv("SHIM_FILES");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, room - 1);
    if (!of || len <= 0) return 0;
    path[len] = 0;
    return strstr(path, of) != NULL;
}

static void report(const char *what, const char *path, long offset, long len) {
    const char *to = getenv("SHIM_REPORT");
    int saved = errno, fd = to ? open(to, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
    if (fd >= 0) { dprintf(fd, "%s %s %ld %ld\n", what, path, offset, len); close(fd); }
    errno = saved;
}

static int sync_with(const char *name, int fd) {
    char path[4096];
    const char *when = getenv("SHIM_FAIL_WHILE");
    int (*real)(int) = dlsym(RTLD_NEXT, name);
    if (!ours(fd, path, sizeof path)) return real(fd);
    const char *hangs = getenv("SHIM_HANG_WHILE");
    while (hangs && access(hangs, F_OK) == 0) usleep(10000);
    if (when && access(when, F_OK) == 0) { errno = EIO; return -1; }
    int done = real(fd);
    report("sync", path, 0, done);
    return done;
}

int fdatasync(int fd) { return sync_with("fdatasync", fd); }
int fsync(int fd) { return sync_with("fsync", fd); }

static int refuses(int fd) {
    char path[4096];
    const char *when = getenv("SHIM_REFUSE_WHILE");
    return when && access(when, F_OK) == 0 && ours(fd, path, sizeof path);
}

ssize_t write(int fd, const void *bytes, size_t len) {
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    if (refuses(fd)) { errno = EIO; return -1; }
    return real(fd, bytes, len);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    ssize_t (*real)(int, const struct iovec *, int) = dlsym(RTLD_NEXT, "writev");
    if (refuses(fd)) { errno = EIO; return -1; }
    return real(fd, parts, count);
}

ssize_t pwrite64(int fd, const void *bytes, size_t len, off_t offset) {
    char path[4096];
    if (refuses(fd)) { errno = EIO; return -1; }
    ssize_t (*real)(int, const void *, size_t, off_t) = dlsym(RTLD_NEXT, "pwrite64");
    ssize_t done = real(fd, bytes, len, offset);
    if (ours(fd, path, sizeof path)) report("write", path, offset, done);
    return done;
}
"#;

/// The library, and the files by which it is told and tells.
pub struct Shim {
    library: PathBuf,
    fails: PathBuf,
    refuses: PathBuf,
    hangs: PathBuf,
    report: PathBuf,
    files: &'static str,
}

impl Shim {
    /// For files whose path contains `files`. `None`, with a word why, on a machine that cannot.
    pub fn build(folder: &Path, files: &'static str) -> Option<Self> {
        let (source, library) = (folder.join("shim.c"), folder.join("shim.so"));
        fs::write(&source, SOURCE).unwrap();
        let built =
            Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).args([&library, &source]).arg("-ldl").status();
        if !built.is_ok_and(|status| status.success()) {
            eprintln!("skipped: cc does not build the library whose syncs fail");
            return None;
        }
        Some(Self {
            library,
            fails: folder.join("fails"),
            refuses: folder.join("refuses"),
            hangs: folder.join("hangs"),
            report: folder.join("report"),
            files,
        })
    }

    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let path = |path: &Path| path.display().to_string();
        vec![
            ("LD_PRELOAD", path(&self.library)),
            ("SHIM_FILES", self.files.to_owned()),
            ("SHIM_FAIL_WHILE", path(&self.fails)),
            ("SHIM_REFUSE_WHILE", path(&self.refuses)),
            ("SHIM_HANG_WHILE", path(&self.hangs)),
            ("SHIM_REPORT", path(&self.report)),
        ]
    }

    /// Writes fail from now on, before a byte is written.
    pub fn refuse(&self) {
        fs::write(&self.refuses, "").unwrap();
    }

    /// Syncs fail from now on.
    pub fn fail(&self) {
        fs::write(&self.fails, "").unwrap();
    }

    /// Syncs hang from now on.
    pub fn hang(&self) {
        fs::write(&self.hangs, "").unwrap();
    }

    pub fn go_on(&self) {
        fs::remove_file(&self.hangs).unwrap();
    }

    pub fn work(&self) {
        fs::remove_file(&self.fails).unwrap();
    }

    /// What was done since the last call: `sync` or `write`, the file, offset and length.
    pub fn take_report(&self) -> Vec<(String, PathBuf, u64, u64)> {
        let text = fs::read_to_string(&self.report).unwrap_or_default();
        drop(fs::remove_file(&self.report));
        let line = |line: &str| {
            let parts: Vec<&str> = line.split(' ').collect();
            (parts[0].to_owned(), PathBuf::from(parts[1]), parts[2].parse().unwrap(), parts[3].parse().unwrap())
        };
        text.lines().map(line).collect()
    }
}
