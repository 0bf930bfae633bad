//! Where data lives: `file:`, `memory:` and `s3:` URLs.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

use super::values::{ValueError, Written, deserialize_written};

/// The place of a store. Opening it is the store's business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// A directory on local disk; a relative one starts at the working directory. Percent signs are taken as they are.
    File(PathBuf),
    /// Memory of this process, gone when it ends.
    Memory,
    /// Keys of an S3 bucket that start with `prefix` and a slash; `prefix` has no slash at either end and may be empty.
    S3 {
        /// Name of the bucket, 3 to 63 bytes.
        bucket: String,
        /// What every key starts with, so that several daemons can share a bucket. Empty: the whole bucket.
        prefix: String,
    },
}

impl StoreUrl {
    /// Whether this is an S3 bucket.
    pub fn is_s3(&self) -> bool {
        matches!(self, Self::S3 { .. })
    }
}

impl FromStr for StoreUrl {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let text = text.trim();
        let (scheme, rest) = text.split_once(':').ok_or(malformed("a scheme is missing"))?;
        match scheme.to_ascii_lowercase().as_str() {
            "file" => parse_file(rest),
            "memory" if rest.chars().all(|c| c == '/') => Ok(Self::Memory),
            "memory" => Err(malformed("memory has no path")),
            "s3" => parse_s3(rest),
            _ => Err(malformed("the scheme is unknown")),
        }
    }
}

fn malformed(reason: &'static str) -> ValueError {
    ValueError::Malformed { reason, expected: StoreUrl::EXPECTED }
}

/// `./dir`, `/dir`, `///dir` or `//localhost/dir`.
fn parse_file(rest: &str) -> Result<StoreUrl, ValueError> {
    let path = match rest.strip_prefix("//") {
        Some(host_and_path) => match host_and_path.split_once('/') {
            Some(("" | "localhost", path)) => format!("/{path}"),
            _ => return Err(malformed("a file of another host cannot be reached")),
        },
        None => rest.to_owned(),
    };
    if path.is_empty() || path.contains('\0') {
        return Err(malformed("the path is empty or holds a zero byte"));
    }
    Ok(StoreUrl::File(PathBuf::from(path)))
}

/// `//bucket` or `//bucket/prefix`.
fn parse_s3(rest: &str) -> Result<StoreUrl, ValueError> {
    let rest = rest.strip_prefix("//").ok_or(malformed("the two slashes after `s3:` are missing"))?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let bucket_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(bucket_char) {
        return Err(malformed("a bucket has 3 to 63 letters, digits, `.`, `-` or `_`"));
    }
    let prefix = prefix.trim_matches('/');
    let bad_part = |part: &str| matches!(part, "" | "." | "..") || part.contains(char::is_control);
    if !prefix.is_empty() && prefix.split('/').any(bad_part) {
        return Err(malformed("the prefix has an empty, `.`, `..` or unprintable part"));
    }
    Ok(StoreUrl::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
}

impl Written for StoreUrl {
    const EXPECTED: &'static str = "`file:./dir`, `file:///dir`, `memory:` or `s3://bucket/prefix`";
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Memory => f.write_str("memory:"),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

impl Serialize for StoreUrl {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StoreUrl {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        deserialize_written(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3(bucket: &str, prefix: &str) -> StoreUrl {
        StoreUrl::S3 { bucket: bucket.into(), prefix: prefix.into() }
    }

    #[test]
    fn urls_are_read_and_printed_back() {
        for (text, url, printed) in [
            ("file:./esker-data", StoreUrl::File("./esker-data".into()), "file:./esker-data"),
            ("file:///var/esker", StoreUrl::File("/var/esker".into()), "file:/var/esker"),
            ("file://localhost/var", StoreUrl::File("/var".into()), "file:/var"),
            ("FILE:/var/a b", StoreUrl::File("/var/a b".into()), "file:/var/a b"),
            ("memory:", StoreUrl::Memory, "memory:"),
            ("memory:///", StoreUrl::Memory, "memory:"),
            ("s3://flink-state", s3("flink-state", ""), "s3://flink-state"),
            ("s3://flink-state/prod/eu/", s3("flink-state", "prod/eu"), "s3://flink-state/prod/eu"),
        ] {
            assert_eq!(text.parse(), Ok(url.clone()), "{text}");
            assert_eq!(url.to_string(), printed);
            assert_eq!(printed.parse(), Ok(url));
        }
    }

    #[test]
    fn wrong_urls_are_answered_with_what_is_allowed() {
        for text in [
            "",
            "esker-data",
            "hdfs://name/x",
            "file:",
            "file://other/x",
            "s3:bucket",
            "s3://",
            "s3://x",
            "s3://a/../b",
            "s3://bucket/a//b",
            "s3://user:pass@host/x",
            "memory:x",
        ] {
            let error = text.parse::<StoreUrl>().unwrap_err().to_string();
            assert!(error.contains("s3://bucket/prefix"), "{text}: {error}");
        }
    }
}
