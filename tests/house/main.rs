//! House rules about the sources that no compiler checks.
//!
//! The map in `src/lib.rs` is an order: a module uses only those above it. So no arrow runs up, and there is no circle. Within a
//! module the files of a folder have such an order, too. The catalog's records are how it writes things down, and stay in it;
//! what others need of them are values of `model`.
//!
//! What breaks a rule today stands in a list here. A list only gets shorter: an entry that nothing needs fails the test, too.

mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use source::File;

/// Files that use a module which stands below their own, and that module.
const RUNS_UP: [(&str, &str); 0] = [];

/// What stands behind the engine.
const BEHIND_THE_ENGINE: [&str; 6] = ["format", "store", "catalog", "merge", "read", "reclaim"];

/// Files of the doors that reach past the engine, and where to.
const PAST_THE_ENGINE: [(&str, &str); 0] = [];

/// How the catalog writes things down. The compiler keeps `record` in the catalog; `mutation` is there for tests, too, which
/// play the journal.
const INSIDE_THE_CATALOG: [&str; 2] = ["mutation", "record"];

/// Files outside the catalog that use it all the same, and what of it.
const LEAKED_FROM_THE_CATALOG: [(&str, &str); 0] = [];

/// Files of one folder that use each other in a circle, apart from its `mod.rs`.
const CIRCLES: [(&str, &[&str]); 3] = [
    ("config", &["choices", "keys", "schema", "url", "values"]),
    ("runtime", &["clock", "floor"]),
    ("store", &["append_file", "data", "direct", "hdfs", "identity", "local", "object", "opened", "space"]),
];

/// The same with `mod.rs`: what the folder is about stands in it together with what drives the folder's files.
const CIRCLES_THROUGH_MOD: [(&str, &[&str]); 8] = [
    ("api/s3", &["access", "again", "copies", "mod", "objects", "ops"]),
    ("catalog/slate", &["disk", "group", "marker", "mod", "scan", "successor", "ticks"]),
    ("catalog/state", &["files", "memory", "mod", "segments", "store", "uploads", "views"]),
    (
        "cli",
        &[
            "audit",
            "bench",
            "cluster",
            "coordinator",
            "inspect",
            "mod",
            "rebuild",
            "restore",
            "run",
            "segments",
            "space",
            "storage",
            "transfer",
            "verify",
        ],
    ),
    ("engine", &["intake", "mod", "objects", "uploads"]),
    ("load/churn", &["instance", "mod", "report", "run"]),
    ("read", &["ahead", "bulk", "mod"]),
    (
        "store",
        &[
            "append",
            "append_file",
            "counted",
            "data",
            "direct",
            "hdfs",
            "identity",
            "local",
            "log_folder",
            "mod",
            "object",
            "open",
            "opened",
            "placement",
            "space",
        ],
    ),
];

/// Names that more than one type has, each with the reason. The crate of clients counts, too.
const SAME_NAMES: [(&str, &str); 4] = [
    ("CheckpointKind", "the wire form, for clients, of the same thing in model/"),
    ("CheckpointState", "the wire form, for clients, of the same thing in model/"),
    ("ErrorKind", "the wire form, for clients, of the same thing in error.rs"),
    ("JobEnd", "the wire form, for clients, of the same thing in model/"),
];

/// The module at the crate's root that a path from the root leads into, or that a file is a part of.
fn top(path: &[String]) -> &str {
    path.first().map_or("", String::as_str)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<File> {
    source::files(&root().join("src"))
}

/// The files `x.rs` in `folder` and below that have a folder `x` beside them.
fn split_modules(folder: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder of the crate can be read") {
        let path = entry.expect("an entry of a folder can be read").path();
        if path.is_dir() {
            found.extend(Some(path.with_extension("rs")).filter(|file| file.is_file()));
            split_modules(&path, found);
        }
    }
}

/// The modules in the order of the map.
fn map(lib: &str) -> Vec<&str> {
    let entries = lib.lines().filter_map(|line| line.strip_prefix("//! - [`"));
    entries.filter_map(|rest| rest.split_once('`')).map(|(name, _)| name.trim_start_matches("mod@")).collect()
}

/// Compares what breaks a rule with what is known to.
fn settle<T: Ord + std::fmt::Debug>(found: BTreeSet<T>, known: BTreeSet<T>, rule: &str) {
    let new: Vec<&T> = found.difference(&known).collect();
    let gone: Vec<&T> = known.difference(&found).collect();
    assert!(new.is_empty(), "{rule}: {new:#?}");
    assert!(gone.is_empty(), "nothing needs these exceptions any more, remove them: {gone:#?}");
}

#[test]
fn the_map_names_every_module_once() {
    let sources = sources();
    let lib = sources.iter().find(|file| file.module.is_empty()).unwrap();
    let map = map(&lib.text);

    let named: BTreeSet<&str> = map.iter().copied().collect();
    let declared: BTreeSet<&str> = lib.mods.iter().map(String::as_str).collect();

    assert_eq!(named, declared);
    assert_eq!(named.len(), map.len(), "{map:?}");
}

#[test]
fn a_module_uses_only_those_above_it_in_the_map() {
    let sources = sources();
    let lib = sources.iter().find(|file| file.module.is_empty()).unwrap();
    let map = map(&lib.text);
    let place = |module: &str| map.iter().position(|name| *name == module);

    let mut found = BTreeSet::new();
    for file in &sources {
        let Some(own) = place(top(&file.module)) else { continue };
        let up = file.paths.iter().map(|path| top(path)).filter(|used| place(used).is_some_and(|used| used > own));
        found.extend(up.map(|used| (file.name.as_str(), used)));
    }

    settle(found, RUNS_UP.into(), "a file uses a module that stands below its own in the map of src/lib.rs");
}

#[test]
fn doors_ask_the_engine_and_nothing_behind_it() {
    let sources = sources();

    let doors = sources.iter().filter(|file| ["api", "daemon"].contains(&top(&file.module)));
    let used = doors.flat_map(|file| file.paths.iter().map(|path| (file.name.as_str(), top(path))));
    let found = used.filter(|(_, used)| BEHIND_THE_ENGINE.contains(used)).collect();

    settle(found, PAST_THE_ENGINE.into(), "a door uses what stands behind the engine");
}

#[test]
fn records_of_the_catalog_stay_in_the_catalog() {
    let sources = sources();

    let outside = sources.iter().filter(|file| top(&file.module) != "catalog");
    let paths = outside.flat_map(|file| file.paths.iter().map(|path| (file.name.as_str(), path)));
    let found = paths.filter_map(|(file, path)| match &path[..] {
        [catalog, module, ..] if catalog == "catalog" && INSIDE_THE_CATALOG.contains(&module.as_str()) => {
            Some((file, module.as_str()))
        }
        _ => None,
    });

    settle(
        found.collect(),
        LEAKED_FROM_THE_CATALOG.into(),
        "something outside the catalog uses how it writes things down",
    );
}

/// The files of a folder, each with those of the same folder that it uses. A folder in it counts as one file; the folder's own
/// file is `mod`.
fn uses_within<'a>(
    folder: &[String],
    files: &BTreeMap<&'a [String], &'a File>,
) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
    let entry = |module: &'a [String]| match module.strip_prefix(folder)? {
        [] => Some("mod"),
        [name, ..] => Some(name.as_str()),
    };
    let mut uses: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (module, file) in files {
        let Some(user) = entry(module) else { continue };
        for path in file.paths.difference(&file.handed_on) {
            let home = source::home(path, files);
            let used = files.get_key_value(&home[..]).and_then(|(home, _)| entry(home));
            uses.entry(user).or_default().extend(used.filter(|used| *used != user));
        }
    }
    uses
}

/// The files that use each other, in circles.
fn circles<'a>(uses: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> BTreeSet<Vec<&'a str>> {
    let reach = |from: &'a str| {
        let (mut seen, mut todo) = (BTreeSet::new(), vec![from]);
        while let Some(file) = todo.pop() {
            todo.extend(uses.get(file).into_iter().flatten().filter(|used| seen.insert(**used)));
        }
        seen
    };
    let reached: BTreeMap<&str, BTreeSet<&str>> = uses.keys().map(|file| (*file, reach(file))).collect();
    let uses_back = |other: &str, file: &str| reached.get(other).is_some_and(|seen| seen.contains(file));
    let circle = |(file, seen): (&&'a str, &BTreeSet<&'a str>)| -> Vec<&'a str> {
        seen.iter().copied().filter(|other| uses_back(other, file)).collect()
    };
    reached.iter().map(circle).filter(|circle| !circle.is_empty()).collect()
}

/// All circles of files, each with its folder.
fn circles_of(sources: &[File], without: Option<&str>) -> BTreeSet<(String, Vec<String>)> {
    let files: BTreeMap<&[String], &File> = sources.iter().map(|file| (&file.module[..], file)).collect();
    let folders = sources.iter().filter(|file| !file.module.is_empty() && !file.mods.is_empty());
    let mut found = BTreeSet::new();
    for folder in folders {
        let mut uses = uses_within(&folder.module, &files);
        if let Some(file) = without {
            uses.remove(file);
            for used in uses.values_mut() {
                used.remove(file);
            }
        }
        let owned = |circle: Vec<&str>| circle.into_iter().map(str::to_owned).collect();
        found.extend(circles(&uses).into_iter().map(|circle| (folder.module.join("/"), owned(circle))));
    }
    found
}

fn named(known: &[(&str, &[&str])]) -> BTreeSet<(String, Vec<String>)> {
    let owned = |files: &[&str]| files.iter().map(|file| (*file).to_owned()).collect();
    known.iter().map(|(folder, files)| ((*folder).to_owned(), owned(files))).collect()
}

#[test]
fn files_of_a_folder_use_each_other_in_one_direction() {
    settle(circles_of(&sources(), Some("mod")), named(&CIRCLES), "files of a folder use each other in a circle");
}

#[test]
fn what_a_folder_is_about_stands_below_what_drives_its_files() {
    let through =
        circles_of(&sources(), None).into_iter().filter(|(_, circle)| circle.iter().any(|file| file == "mod"));

    settle(through.collect(), named(&CIRCLES_THROUGH_MOD), "a file uses the mod.rs of its folder, which uses it");
}

#[test]
fn a_circle_is_found_and_a_chain_is_not() {
    let uses = |files: &[(&'static str, &[&'static str])]| {
        files.iter().map(|(file, used)| (*file, used.iter().copied().collect())).collect::<BTreeMap<_, BTreeSet<_>>>()
    };

    assert!(circles(&uses(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &[])])).is_empty());
    let found = circles(&uses(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"]), ("d", &["e"]), ("e", &["d"])]));
    assert_eq!(found, BTreeSet::from([vec!["b", "c"], vec!["d", "e"]]));
}

#[test]
fn the_name_of_a_type_means_one_thing() {
    let clients = source::files(&root().join("clients/rust/src"));
    let sources = sources();

    let mut count = BTreeMap::<&str, usize>::new();
    for name in sources.iter().chain(&clients).flat_map(|file| &file.types) {
        *count.entry(name).or_default() += 1;
    }
    let found = count.into_iter().filter(|(_, count)| *count > 1).map(|(name, _)| name).collect();

    let known = SAME_NAMES.iter().map(|(name, _)| *name).collect();
    settle(found, known, "two types have the same name");
}

#[test]
fn a_module_with_submodules_is_a_mod_rs() {
    let mut found = BTreeSet::new();
    for folder in ["src", "clients/rust/src", "tests", "benches"] {
        split_modules(&root().join(folder), &mut found);
    }

    settle(found, BTreeSet::new(), "a module stands beside the folder of its submodules");
}
