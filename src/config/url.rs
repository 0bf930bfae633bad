//! Where data lives: `file:`, `memory:`, `s3:` and `hdfs:` URLs.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::values::{ValueError, WrittenValue};

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
        /// The start of every key, so that several daemons can share a bucket. Empty: the whole bucket.
        prefix: String,
    },
    /// A folder of an HDFS.
    Hdfs {
        /// `host:port` of the NameNode, or the name of a nameservice.
        authority: String,
        /// The folder: absolute, without a slash at its end; `/` is not taken.
        path: String,
    },
}

impl StoreUrl {
    /// Whether this is an S3 bucket.
    pub fn is_s3(&self) -> bool {
        matches!(self, Self::S3 { .. })
    }

    /// Whether this is a folder of an HDFS.
    pub fn is_hdfs(&self) -> bool {
        matches!(self, Self::Hdfs { .. })
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
            "hdfs" => parse_hdfs(rest),
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
    if !prefix.is_empty() && prefix.split('/').any(is_bad_part) {
        return Err(malformed("the prefix has an empty, `.`, `..` or unprintable part"));
    }
    Ok(StoreUrl::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
}

/// `//host:port/folder` or `//nameservice/folder`.
fn parse_hdfs(rest: &str) -> Result<StoreUrl, ValueError> {
    let rest = rest.strip_prefix("//").ok_or(malformed("the two slashes after `hdfs:` are missing"))?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (host, port) = authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
    let host_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let bad_port = port.is_some_and(|port| port.parse::<u16>().is_err());
    if host.is_empty() || !host.chars().all(host_char) || bad_port {
        return Err(malformed("a NameNode is `host:port`, or the name of a nameservice"));
    }
    let path = path.trim_matches('/');
    if path.is_empty() || path.split('/').any(|part| is_bad_part(part) || part.contains(':')) {
        return Err(malformed("a folder is missing, or has an empty, `.`, `..` or unprintable part, or a colon"));
    }
    Ok(StoreUrl::Hdfs { authority: authority.to_owned(), path: format!("/{path}") })
}

fn is_bad_part(part: &str) -> bool {
    matches!(part, "" | "." | "..") || part.contains(char::is_control)
}

impl WrittenValue for StoreUrl {
    const EXPECTED: &'static str =
        "`file:./dir`, `file:///dir`, `memory:`, `s3://bucket/prefix` or `hdfs://host:port/folder`";
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Memory => f.write_str("memory:"),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            Self::Hdfs { authority, path } => write!(f, "hdfs://{authority}{path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3(bucket: &str, prefix: &str) -> StoreUrl {
        StoreUrl::S3 { bucket: bucket.into(), prefix: prefix.into() }
    }

    fn hdfs(authority: &str, path: &str) -> StoreUrl {
        StoreUrl::Hdfs { authority: authority.into(), path: path.into() }
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
            ("hdfs://nn-1:8020/flink/esker/", hdfs("nn-1:8020", "/flink/esker"), "hdfs://nn-1:8020/flink/esker"),
            ("hdfs://prod/esker", hdfs("prod", "/esker"), "hdfs://prod/esker"),
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
            "wasb://name/x",
            "hdfs:/x",
            "hdfs://name",
            "hdfs://name/",
            "hdfs:///x",
            "hdfs://name:x/y",
            "hdfs://user@name/y",
            "hdfs://name/a/../b",
            "hdfs://name/a:b",
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
