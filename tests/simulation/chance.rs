//! A library in front of libc whose random bytes are those of a seed, and whose clocks are none.
//!
//! The order of hash maps, the branch that a `select!` looks at first, names that a library draws: all of that comes from
//! `getrandom`. So each run is a process of its own, in which that is told by the seed. The wall clock, which HTTP libraries write into
//! answers, stands still there; the monotonic one, by which they forget what they have reset, goes on by a microsecond with each look.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = r#"
#include <stdint.h>
#include <stdlib.h>
#include <sys/types.h>
#include <time.h>

static uint64_t state;
static int begun;

static uint64_t next(void) {
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

ssize_t getrandom(void *buffer, size_t len, unsigned int flags) {
    (void)flags;
    if (!begun) {
        const char *seed = getenv("ESKER_SIM_CHANCE");
        state = seed ? strtoull(seed, 0, 10) : 0;
        begun = 1;
    }
    for (size_t at = 0; at < len; at++) ((unsigned char *)buffer)[at] = (unsigned char)next();
    return (ssize_t)len;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static uint64_t looks;
    if (clock == CLOCK_REALTIME) {
        now->tv_sec = 1767225600;
        now->tv_nsec = 0;
    } else {
        looks++;
        now->tv_sec = 1000 + (time_t)(looks / 1000000);
        now->tv_nsec = (long)(looks % 1000000) * 1000;
    }
    return 0;
}
"#;

/// Builds the library. `None`, with a word why, on a machine that cannot.
pub(crate) fn build(folder: &Path) -> Option<PathBuf> {
    let (source, library) = (folder.join("chance.c"), folder.join("chance.so"));
    fs::write(&source, SOURCE).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).args([&library, &source]).status();
    if !built.is_ok_and(|status| status.success()) {
        eprintln!("skipped: cc does not build the library that tells random bytes by a seed");
        return None;
    }
    Some(library)
}
