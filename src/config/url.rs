//! Where data lives: `file:`, `memory:`, `s3:`, `gs:`, `az:`, `abfss:` and `hdfs:` URLs.

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
    /// Names of a Google Cloud Storage bucket that start with `prefix` and a slash, as on S3.
    Gcs {
        /// Name of the bucket, 3 to 222 bytes.
        bucket: String,
        /// As on S3.
        prefix: String,
    },
    /// Names of a container of Azure Blob Storage that start with `prefix` and a slash, as on S3.
    Azure {
        /// The host of the container's account, `account.dfs.core.windows.net`. `None`: the account is named elsewhere.
        host: Option<String>,
        /// Name of the container, 3 to 63 bytes.
        container: String,
        /// As on S3.
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

    /// Whether this is a bucket of Google Cloud Storage.
    pub fn is_gcs(&self) -> bool {
        matches!(self, Self::Gcs { .. })
    }

    /// Whether this is a container of Azure Blob Storage.
    pub fn is_azure(&self) -> bool {
        matches!(self, Self::Azure { .. })
    }

    /// Whether this is a part of an object storage service, whichever it is.
    pub fn is_service(&self) -> bool {
        self.is_s3() || self.is_gcs() || self.is_azure()
    }

    /// The place below this one, if it is a part of an object storage service; else the place itself.
    #[must_use]
    pub fn below(&self, folders: &[String]) -> Self {
        let mut below = self.clone();
        if let Self::S3 { prefix, .. } | Self::Gcs { prefix, .. } | Self::Azure { prefix, .. } = &mut below {
            let parts = std::iter::once(prefix.as_str()).chain(folders.iter().map(String::as_str));
            *prefix = parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
        }
        below
    }

    /// The storage account that the URL names.
    pub fn azure_account(&self) -> Option<&str> {
        match self {
            Self::Azure { host: Some(host), .. } => host.split('.').next(),
            _ => None,
        }
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
            "gs" => parse_gcs(rest),
            "az" => parse_azure(rest),
            "abfss" => parse_abfss(rest),
            "gcs" => Err(malformed("a bucket of Google Cloud Storage is `gs://bucket/prefix`")),
            "azure" | "abfs" | "wasb" | "wasbs" => Err(malformed(
                "a container of Azure is `az://container/prefix` or \
                 `abfss://container@account.dfs.core.windows.net/prefix`",
            )),
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
    if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(is_bucket_char) {
        return Err(malformed("a bucket has 3 to 63 letters, digits, `.`, `-` or `_`"));
    }
    Ok(StoreUrl::S3 { bucket: bucket.to_owned(), prefix: parse_prefix(prefix)? })
}

/// `//bucket` or `//bucket/prefix`.
fn parse_gcs(rest: &str) -> Result<StoreUrl, ValueError> {
    let rest = rest.strip_prefix("//").ok_or(malformed("the two slashes after `gs:` are missing"))?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    // A name with dots may be longer than the others.
    if !(3..=222).contains(&bucket.len()) || !bucket.chars().all(|c| is_bucket_char(c) && !c.is_ascii_uppercase()) {
        return Err(malformed("a bucket has 3 to 222 small letters, digits, `.`, `-` or `_`"));
    }
    Ok(StoreUrl::Gcs { bucket: bucket.to_owned(), prefix: parse_prefix(prefix)? })
}

/// `//container` or `//container/prefix`.
fn parse_azure(rest: &str) -> Result<StoreUrl, ValueError> {
    let rest = rest.strip_prefix("//").ok_or(malformed("the two slashes after `az:` are missing"))?;
    let (container, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    Ok(StoreUrl::Azure { host: None, container: parse_container(container)?, prefix: parse_prefix_in_azure(prefix)? })
}

/// `//container@account.dfs.core.windows.net` with or without a prefix, as Hadoop has it.
fn parse_abfss(rest: &str) -> Result<StoreUrl, ValueError> {
    const FORM: &str = "it is `abfss://container@account.dfs.core.windows.net/prefix`; the container is missing, or the \
                        account, or what comes after it";
    let rest = rest.strip_prefix("//").ok_or(malformed("the two slashes after `abfss:` are missing"))?;
    let (authority, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let (container, host) = authority.split_once('@').ok_or(malformed(FORM))?;
    let (account, cloud) = host.split_once('.').ok_or(malformed(FORM))?;
    let cloud_char = |c: char| c.is_ascii_lowercase() || c == '.';
    if !is_azure_account(account) || !cloud.starts_with("dfs.core.") || !cloud.chars().all(cloud_char) {
        return Err(malformed(FORM));
    }
    let (container, prefix) = (parse_container(container)?, parse_prefix_in_azure(prefix)?);
    Ok(StoreUrl::Azure { host: Some(host.to_owned()), container, prefix })
}

/// Whether this can be the name of a storage account.
pub(super) fn is_azure_account(name: &str) -> bool {
    (3..=24).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// Whether this can be the name of a container.
pub(super) fn is_container(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_odd = name.starts_with('-') || name.ends_with('-') || name.contains("--");
    (3..=63).contains(&name.len()) && name.chars().all(allowed) && !is_odd
}

fn parse_container(name: &str) -> Result<String, ValueError> {
    if !is_container(name) {
        return Err(malformed("a container has 3 to 63 small letters and digits, with single `-` between them"));
    }
    Ok(name.to_owned())
}

fn is_bucket_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')
}

/// The prefix without the slashes around it.
fn parse_prefix(prefix: &str) -> Result<String, ValueError> {
    let prefix = prefix.trim_matches('/');
    if !prefix.is_empty() && prefix.split('/').any(is_bad_part) {
        return Err(malformed("the prefix has an empty, `.`, `..` or unprintable part"));
    }
    // The catalog's database encodes some of its names once more than others: they would be in two folders.
    if object_store::path::Path::from(prefix).as_ref() != prefix {
        return Err(malformed(
            "the prefix has a character that is not ASCII, or one of `% ~ # ? * [ ] { } ^ | < > \" \\` and backquote",
        ));
    }
    Ok(prefix.to_owned())
}

/// The same where the service does not keep a dot at the end of a part.
fn parse_prefix_in_azure(prefix: &str) -> Result<String, ValueError> {
    let prefix = parse_prefix(prefix)?;
    match prefix.split('/').any(|part| part.ends_with('.')) || prefix.contains('\\') {
        true => Err(malformed("on Azure no part of the prefix ends with a dot or has a backslash")),
        false => Ok(prefix),
    }
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
    const EXPECTED: &'static str = "`file:./dir`, `file:///dir`, `memory:`, `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`, \
         `abfss://container@account.dfs.core.windows.net/prefix` or `hdfs://host:port/folder`";
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Memory => f.write_str("memory:"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}{}", BelowSlash(prefix)),
            Self::Gcs { bucket, prefix } => write!(f, "gs://{bucket}{}", BelowSlash(prefix)),
            Self::Azure { host: None, container, prefix } => write!(f, "az://{container}{}", BelowSlash(prefix)),
            Self::Azure { host: Some(host), container, prefix } => {
                write!(f, "abfss://{container}@{host}{}", BelowSlash(prefix))
            }
            Self::Hdfs { authority, path } => write!(f, "hdfs://{authority}{path}"),
        }
    }
}

/// A prefix, with a slash before it unless it is empty.
struct BelowSlash<'a>(&'a str);

impl fmt::Display for BelowSlash<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "/{}", self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gcs(bucket: &str, prefix: &str) -> StoreUrl {
        StoreUrl::Gcs { bucket: bucket.into(), prefix: prefix.into() }
    }

    fn azure(host: Option<&str>, container: &str, prefix: &str) -> StoreUrl {
        StoreUrl::Azure { host: host.map(str::to_owned), container: container.into(), prefix: prefix.into() }
    }

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
            ("gs://flink-state", gcs("flink-state", ""), "gs://flink-state"),
            ("gs://state.example.com/prod/eu/", gcs("state.example.com", "prod/eu"), "gs://state.example.com/prod/eu"),
            ("az://state", azure(None, "state", ""), "az://state"),
            ("az://state/prod/eu/", azure(None, "state", "prod/eu"), "az://state/prod/eu"),
            (
                "abfss://state@acme1.dfs.core.windows.net/prod",
                azure(Some("acme1.dfs.core.windows.net"), "state", "prod"),
                "abfss://state@acme1.dfs.core.windows.net/prod",
            ),
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
            "s3://bucket/m\u{fc}nchen",
            "s3://bucket/a~b",
            "gs://bucket/a%b",
            "az://container/a/b#c",
            "s3://user:pass@host/x",
            "gs:bucket",
            "gs://",
            "gs://ab",
            "gs://Bucket/x",
            "gs://bucket/a//b",
            "gcs://bucket/x",
            "az:container",
            "az://",
            "az://co",
            "az://Container/x",
            "az://a--b/x",
            "az://-ab/x",
            "az://container/a./b",
            "az://container@account.dfs.core.windows.net/x",
            "abfs://container@account.dfs.core.windows.net/x",
            "abfss://container/x",
            "abfss://@account.dfs.core.windows.net/x",
            "abfss://container@account/x",
            "abfss://container@account.blob.core.windows.net/x",
            "abfss://container@account.example.com/x",
            "abfss://container@Account.dfs.core.windows.net/x",
            "memory:x",
        ] {
            let error = text.parse::<StoreUrl>().unwrap_err().to_string();
            assert!(error.contains("s3://bucket/prefix"), "{text}: {error}");
        }
    }

    #[test]
    fn a_url_tells_what_is_behind_it() {
        let url = |text: &str| text.parse::<StoreUrl>().unwrap();
        assert_eq!(url("abfss://state@acme1.dfs.core.chinacloudapi.cn").azure_account(), Some("acme1"));
        for (text, is_service) in
            [("az://state", true), ("gs://state", true), ("s3://state", true), ("file:/x", false), ("memory:", false)]
        {
            assert_eq!(url(text).is_service(), is_service, "{text}");
            assert_eq!(url(text).azure_account(), None, "{text}");
        }
    }
}
