//! The bucket and key that a path of Flink's means.
//!
//! Flink writes paths as URIs without escapes: `s3://bucket/folder/a b`. Its S3 file systems know several schemes for the same
//! thing. A relative path is one below the folder of `_metadata`, so it goes with the files when a savepoint is moved.

use percent_encoding::percent_decode_str;

use super::metadata::NamedPath;
use crate::model::FlinkKey;

/// Schemes of S3.
const SCHEMES: [&str; 4] = ["s3", "s3a", "s3p", "s3n"];

/// Where a file is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// An object of S3.
    Object {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
    },
    /// A file of another kind of storage.
    Elsewhere(String),
}

/// The place of a file that the `_metadata` under `key` of `bucket` names. Never has the user or secret of a URI.
pub fn place_of(bucket: &str, key: &str, path: &NamedPath<'_>) -> Place {
    match path {
        NamedPath::Relative(below) => {
            let key = match key.rsplit_once('/') {
                Some((folder, _)) => format!("{folder}/{below}"),
                None => below.to_string(),
            };
            Place::Object { bucket: bucket.to_owned(), key }
        }
        NamedPath::Absolute(uri) => of_uri(uri).unwrap_or_else(|| Place::Elsewhere(without_user(uri))),
    }
}

fn of_uri(uri: &str) -> Option<Place> {
    let (scheme, bucket, key) = parts(uri);
    let is_s3 = SCHEMES.iter().any(|known| known.eq_ignore_ascii_case(scheme));
    (is_s3 && !bucket.is_empty() && !key.is_empty())
        .then(|| Place::Object { bucket: bucket.to_owned(), key: key.to_owned() })
}

/// Every bucket and key that a path may mean, for whoever must not miss the right one: a copy of a checkpoint names the files
/// of the original, and not every file system writes the name of the bucket as it is here.
pub fn places_meant(bucket: &str, key: &str, path: &NamedPath<'_>) -> Vec<(String, String)> {
    let mut meant = vec![];
    if let Place::Object { bucket, key } = place_of(bucket, key, path) {
        meant.push((bucket, key));
    }
    if let NamedPath::Absolute(uri) = path {
        let (_, authority, rest) = parts(uri);
        for of in [authority, authority.split(['.', ':']).next().unwrap_or_default(), bucket] {
            meant.push((of.to_owned(), rest.to_owned()));
        }
        meant.extend(copied_to(key, rest).into_iter().map(|copy| (bucket.to_owned(), copy)));
    }
    let plain: Vec<_> = meant.iter().filter_map(|(bucket, key)| Some((bucket.clone(), decoded(key)?))).collect();
    meant.extend(plain);
    meant.sort_unstable();
    meant.dedup();
    meant
}

/// The keys of a named file if it was copied together with the `_metadata` that is under `key` now: in the folder of its job,
/// or in that of another job beside it, whose files the copied one has claimed.
fn copied_to(key: &str, named: &str) -> Vec<String> {
    let Some(original) = FlinkKey::of(named) else { return vec![] };
    let folder = match FlinkKey::of(key) {
        Some(flink) => flink.folder,
        None => key.rsplit_once('/').map_or("", |(folder, _)| folder),
    };
    let below = named[original.folder.len()..].trim_start_matches('/');
    let job = original.folder.rsplit('/').next().unwrap_or_default();
    let beside = folder.rsplit_once('/').map_or_else(|| job.to_owned(), |(parent, _)| format!("{parent}/{job}"));
    let within = |folder: &str| if folder.is_empty() { below.to_owned() } else { format!("{folder}/{below}") };
    vec![within(folder), within(&beside)]
}

/// Scheme, authority without user, and path without the slash before it.
fn parts(uri: &str) -> (&str, &str, &str) {
    let Some((scheme, rest)) = uri.split_once("://") else {
        let path = uri.split_once(":/").map_or(uri, |(_, path)| path);
        return ("", "", path.trim_start_matches('/'));
    };
    let (authority, path) = after_user(rest).split_once('/').unwrap_or((after_user(rest), ""));
    (scheme, authority, path)
}

/// Leaves out `user:secret@`. A secret may have slashes, which Flink does not escape.
fn after_user(rest: &str) -> &str {
    let authority = rest.split('/').next().unwrap_or_default();
    if let Some((user, _)) = authority.rsplit_once('@') {
        return &rest[user.len() + 1..];
    }
    let is_port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    match (authority.split_once(':'), rest.split_once('@')) {
        (Some((_, port)), Some((_, after))) if !is_port(port) => after,
        _ => rest,
    }
}

fn without_user(uri: &str) -> String {
    match uri.split_once("://") {
        Some((scheme, rest)) => format!("{scheme}://{}", after_user(rest)),
        None => uri.to_owned(),
    }
}

/// The key that an escaped one means, if it is another: some clients escape what Flink writes as it is.
pub fn decoded(key: &str) -> Option<String> {
    let plain = percent_decode_str(key).decode_utf8().ok()?;
    (plain != key).then(|| plain.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(bucket: &str, key: &str) -> Place {
        Place::Object { bucket: bucket.into(), key: key.into() }
    }

    #[test]
    fn absolute_paths_name_their_bucket_whatever_the_scheme_is_called() {
        for uri in ["s3://b/d/shared/a b%20", "s3a://b/d/shared/a b%20", "S3P://b/d/shared/a b%20"] {
            assert_eq!(place_of("x", "k/_metadata", &NamedPath::Absolute(uri.into())), object("b", "d/shared/a b%20"));
        }
        for uri in ["file:/tmp/x", "file:///tmp/x", "hdfs://b/d", "s3://b", "s3:///d", "/d/e", "s3://b/"] {
            let place = place_of("x", "k/_metadata", &NamedPath::Absolute(uri.into()));
            assert_eq!(place, Place::Elsewhere(uri.into()));
        }
    }

    #[test]
    fn an_escaped_key_means_another() {
        assert_eq!(decoded("d/a%20b").as_deref(), Some("d/a b"));
        assert_eq!(decoded("d/a b"), None);
        assert_eq!(decoded("d/%ff"), None);
    }

    #[test]
    fn relative_paths_are_below_the_folder_of_the_file() {
        let place = |key: &str| place_of("x", key, &NamedPath::Relative("U".into()));

        assert_eq!(place("d/chk-1/_metadata"), object("x", "d/chk-1/U"));
        assert_eq!(place("_metadata"), object("x", "U"));
        assert_eq!(place("a//b/_metadata"), object("x", "a//b/U"));
    }

    const J: &str = "0123456789abcdef0123456789abcdef";

    fn means(key: &str, uri: &str, bucket: &str, meant: &str) {
        let meant = (bucket.to_owned(), meant.to_owned());
        let all = places_meant("here", key, &NamedPath::Absolute(uri.into()));
        assert!(all.contains(&meant), "{key} names {uri}: {all:?}");
    }

    #[test]
    fn a_copy_of_a_checkpoint_means_its_own_files_and_those_of_the_original() {
        let copy = format!("backup/{J}/chk-7/_metadata");
        for below in ["chk-7/U", "shared/U", "shared/job_ab_op_x/U", "taskowned/U"] {
            let uri = format!("s3://there/ckpt/{J}/{below}");
            means(&copy, &uri, "there", &format!("ckpt/{J}/{below}"));
            means(&copy, &uri, "here", &format!("backup/{J}/{below}"));
        }
        // Into a bucket of another name, as a whole.
        means(
            &format!("ckpt/{J}/chk-7/_metadata"),
            &format!("s3://there/ckpt/{J}/shared/U"),
            "here",
            &format!("ckpt/{J}/shared/U"),
        );
        // What it has claimed was copied beside it.
        let claimed = "00000000000000000000000000000000";
        means(
            &copy,
            &format!("s3://there/ckpt/{claimed}/shared/a%20b"),
            "here",
            &format!("backup/{claimed}/shared/a b"),
        );
    }

    #[test]
    fn a_uri_that_is_not_understood_means_the_bucket_that_it_may_be() {
        let (key, named) = (format!("d/{J}/chk-7/_metadata"), format!("d/{J}/shared/U"));
        for uri in ["s3://ak:sk@b/", "s3://ak:s/k@b/", "oss://b/", "s3://b.internal/", "s3://b:9000/", "S3://b/"] {
            means(&key, &format!("{uri}{named}"), "b", &named);
        }
        for uri in ["file:/", "file:///", "hdfs://namenode:8020/", "/", "s3://endpoint/bucket/"] {
            means(&key, &format!("{uri}{named}"), "here", &named);
        }
    }

    #[test]
    fn nobody_is_told_the_secret_of_a_uri() {
        let place = |uri: &str| place_of("x", "k/_metadata", &NamedPath::Absolute(uri.into()));

        assert_eq!(place("s3://ak:sk@b/d/a@b"), object("b", "d/a@b"));
        assert_eq!(place("s3a://ak:s/k@b/d"), object("b", "d"));
        assert_eq!(place("wasb://user:secret@b/d"), Place::Elsewhere("wasb://b/d".into()));
        assert_eq!(place("oss://host:80/d@e"), Place::Elsewhere("oss://host:80/d@e".into()));
    }
}
