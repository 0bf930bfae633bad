//! The place that a URI of Flink's names.
//!
//! Flink writes paths as they are, without escapes: `hdfs://namenode:8020/folder/a b`, `file:/folder`, `s3://bucket/folder`,
//! `gs://bucket/folder`, `abfss://container@account.dfs.core.windows.net/folder`.

use std::fmt;

use crate::config::StoreUrl;

/// The port of a NameNode that no URI has to name.
const NAMENODE_PORT: &str = ":8020";

/// Accounts of Azure's public cloud are at this place.
const AZURE_CLOUD: &str = "dfs.core.windows.net";

/// A storage, all of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StorageRoot {
    /// The disks of this machine.
    Disk,
    /// A bucket of an S3 server.
    Bucket(String),
    /// A bucket of Google Cloud Storage.
    Gcs(String),
    /// A container of Azure Blob Storage.
    Azure {
        /// The host of its account, `account.dfs.core.windows.net`. `None`: the account is named elsewhere.
        host: Option<String>,
        /// Its name.
        container: String,
    },
    /// An HDFS: `host:port` of its NameNode or the name of a nameservice.
    Hdfs(String),
}

/// A file or a folder of a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageLocation {
    root: StorageRoot,
    /// What stands before the path in a URI, as it was written.
    prefix: String,
    /// Without a slash at either end.
    path: String,
}

/// Why a text is no place to move files from or to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{uri:?} cannot be used: {why}")]
pub struct LocationError {
    uri: String,
    why: &'static str,
}

impl StorageLocation {
    /// Reads a URI: `hdfs://`, `s3://` (`s3a`, `s3n`, `s3p`), `gs://`, `abfss://` (`abfs`, `wasb`, `wasbs`), `az://` or `file:`.
    ///
    /// # Errors
    /// [`LocationError`], with what is wrong.
    pub fn of(uri: &str) -> Result<Self, LocationError> {
        let refused = |why| LocationError { uri: uri.to_owned(), why };
        let (scheme, rest) = uri.split_once(':').ok_or(refused("it has no scheme"))?;
        let scheme = scheme.to_ascii_lowercase();
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) => rest.split_once('/').unwrap_or((rest, "")),
            None => ("", rest.strip_prefix('/').ok_or(refused("its path does not begin with a slash"))?),
        };
        let (root, prefix) = match scheme.as_str() {
            "file" if matches!(authority, "" | "localhost") => (StorageRoot::Disk, "file:/".to_owned()),
            "file" => return Err(refused("a file of another host cannot be reached")),
            "s3" | "s3a" | "s3n" | "s3p" if authority.contains('@') => {
                return Err(refused("keys do not belong into it"));
            }
            "s3" | "s3a" | "s3n" | "s3p" if !authority.is_empty() => {
                (StorageRoot::Bucket(authority.to_owned()), format!("{scheme}://{authority}/"))
            }
            "s3" | "s3a" | "s3n" | "s3p" => return Err(refused("it names no bucket")),
            "gs" if !authority.is_empty() => (StorageRoot::Gcs(authority.to_owned()), format!("gs://{authority}/")),
            "gs" => return Err(refused("it names no bucket")),
            "abfs" | "abfss" | "wasb" | "wasbs" => {
                let root = of_azure(authority)
                    .ok_or(refused("it is not of the form container@account.dfs.core.windows.net"))?;
                (root, format!("{scheme}://{authority}/"))
            }
            "az" if authority.contains('@') => return Err(refused("with an account it is abfss://")),
            "az" if !authority.is_empty() => {
                (StorageRoot::Azure { host: None, container: authority.to_owned() }, format!("az://{authority}/"))
            }
            "az" => return Err(refused("it names no container")),
            "hdfs" if !authority.is_empty() => {
                let name = authority.to_ascii_lowercase();
                let name = name.strip_suffix(NAMENODE_PORT).unwrap_or(&name);
                (StorageRoot::Hdfs(name.to_owned()), format!("hdfs://{authority}/"))
            }
            "hdfs" => return Err(refused("it names no NameNode and no nameservice")),
            _ => return Err(refused("it is none of hdfs://, s3://, gs://, abfss://, az:// and file:")),
        };
        let path = path.trim_matches('/');
        if path.split('/').any(|part| matches!(part, "." | "..") || part.is_empty()) && !path.is_empty() {
            return Err(refused("its path has a part that is empty, `.` or `..`"));
        }
        if path.chars().any(char::is_control) {
            return Err(refused("its path has a character that cannot be printed"));
        }
        Ok(Self { root, prefix, path: path.to_owned() })
    }

    /// The storage.
    pub fn root(&self) -> &StorageRoot {
        &self.root
    }

    /// The path, without a slash at either end.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether it is the same file or folder, however it is written.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.root, &self.path) == (&other.root, &other.path)
    }

    /// Another path of the same storage.
    pub fn at(&self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self.clone() }
    }

    /// The same with the account of its container, as Flink writes it, if it is one of Azure without.
    pub fn in_account(self, account: &str) -> Self {
        let StorageRoot::Azure { host: None, container } = &self.root else { return self };
        let (host, container) = (format!("{account}.{AZURE_CLOUD}"), container.clone());
        let prefix = format!("abfss://{container}@{host}/");
        Self { root: StorageRoot::Azure { host: Some(host), container }, prefix, ..self }
    }

    /// What is called so in this folder.
    pub fn join(&self, below: &str) -> Self {
        self.at(&joined(&self.path, below))
    }

    /// The folder that it is in; its own if that is the root.
    pub fn parent(&self) -> Self {
        self.at(self.path.rsplit_once('/').map_or("", |(folder, _)| folder))
    }

    /// The last part of the path.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

/// `container@account.dfs.core.windows.net`, or with `blob` for `dfs`, which is the same.
fn of_azure(authority: &str) -> Option<StorageRoot> {
    let (container, host) = authority.split_once('@')?;
    let host = host.to_ascii_lowercase().replacen(".blob.", ".dfs.", 1);
    let (account, cloud) = host.split_once('.')?;
    let is_one = !container.is_empty() && !account.is_empty() && cloud.starts_with("dfs.");
    is_one.then(|| StorageRoot::Azure { host: Some(host.clone()), container: container.to_owned() })
}

impl fmt::Display for StorageLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.prefix, self.path)
    }
}

impl StorageRoot {
    /// The store of the whole, for a client of it. A path stands where the form of the URL wants one.
    pub fn url(&self) -> StoreUrl {
        match self {
            Self::Disk => StoreUrl::File("/".into()),
            Self::Bucket(bucket) => StoreUrl::S3 { bucket: bucket.clone(), prefix: String::new() },
            Self::Gcs(bucket) => StoreUrl::Gcs { bucket: bucket.clone(), prefix: String::new() },
            Self::Azure { host, container } => {
                StoreUrl::Azure { host: host.clone(), container: container.clone(), prefix: String::new() }
            }
            Self::Hdfs(authority) => StoreUrl::Hdfs { authority: authority.clone(), path: "/".to_owned() },
        }
    }

    /// Whether files of both can be read with the same credentials and settings.
    pub fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

impl fmt::Display for StorageRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk => f.write_str("the local disk"),
            Self::Bucket(bucket) => write!(f, "s3://{bucket}"),
            Self::Gcs(bucket) => write!(f, "gs://{bucket}"),
            Self::Azure { host: None, container } => write!(f, "az://{container}"),
            Self::Azure { host: Some(host), container } => write!(f, "abfss://{container}@{host}"),
            Self::Hdfs(authority) => write!(f, "hdfs://{authority}"),
        }
    }
}

/// Two paths with a slash between them, unless one is empty.
pub(super) fn joined(folder: &str, below: &str) -> String {
    match (folder, below) {
        ("", below) => below.to_owned(),
        (folder, "") => folder.to_owned(),
        (folder, below) => format!("{folder}/{below}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(uri: &str) -> StorageLocation {
        StorageLocation::of(uri).unwrap()
    }

    #[test]
    fn the_same_place_is_the_same_whatever_it_is_called() {
        for (one, other) in [
            ("hdfs://namenode:8020/a/b", "hdfs://NameNode/a/b/"),
            ("s3://bucket/a", "s3a://bucket//a"),
            ("file:/a/b", "file:///a/b"),
            ("file://localhost/a", "FILE:/a"),
            ("gs://bucket/a", "GS://bucket/a/"),
            ("abfss://c@acme.dfs.core.windows.net/a", "abfs://c@Acme.dfs.core.windows.net/a"),
            ("abfss://c@acme.dfs.core.windows.net/a", "wasbs://c@acme.blob.core.windows.net/a"),
        ] {
            assert_eq!((of(one).root(), of(one).path()), (of(other).root(), of(other).path()), "{one}");
        }
        for (one, other) in [
            ("hdfs://a:8020/x", "hdfs://a:9000/x"),
            ("s3://a/x", "s3://A/x"),
            ("s3://a/x", "gs://a/x"),
            ("abfss://c@acme.dfs.core.windows.net/a", "abfss://c@other.dfs.core.windows.net/a"),
        ] {
            assert_ne!(of(one).root(), of(other).root(), "{one}");
        }
    }

    #[test]
    fn a_place_is_written_as_it_was_read() {
        assert_eq!(of("s3a://b/a/").join("x").to_string(), "s3a://b/a/x");
        assert_eq!(of("hdfs://n:8020/a/b").parent().to_string(), "hdfs://n:8020/a");
        assert_eq!(of("file:///a/ü b").to_string(), "file:/a/ü b");
        assert_eq!(of("s3://b").join("x").parent().to_string(), "s3://b/");
        assert_eq!(of("gs://b/a").join("x").to_string(), "gs://b/a/x");
        let wasbs = "wasbs://c@acme.blob.core.windows.net/a";
        assert_eq!(of(wasbs).in_account("other").to_string(), wasbs);
    }

    #[test]
    fn a_container_without_an_account_gets_the_form_that_flink_knows() {
        let named = of("az://c/a/b").in_account("acme");
        assert_eq!(named.to_string(), "abfss://c@acme.dfs.core.windows.net/a/b");
        assert_eq!(named, of(&named.to_string()));
        assert_eq!(of("az://c/a").to_string(), "az://c/a");
        assert_eq!(of("s3://c/a").in_account("acme"), of("s3://c/a"));
    }

    #[test]
    fn what_is_no_place_is_refused_with_the_reason() {
        for (uri, why) in [
            ("chk-1", "no scheme"),
            ("ftp://b/x", "none of hdfs"),
            ("gs:///x", "no bucket"),
            ("az:///x", "no container"),
            ("az://c@acme.dfs.core.windows.net/x", "abfss://"),
            ("abfss://c/x", "container@account"),
            ("abfss://@acme.dfs.core.windows.net/x", "container@account"),
            ("abfss://c@acme.example.com/x", "container@account"),
            ("file://host/x", "another host"),
            ("file:x", "begin with a slash"),
            ("s3:///x", "no bucket"),
            ("hdfs:///x", "no NameNode"),
            ("s3://key:secret@b/x", "keys do not belong"),
            ("s3://b/a/../x", "`..`"),
            ("s3://b/a//x", "empty"),
            ("s3://b/a\nx", "printed"),
        ] {
            let said = StorageLocation::of(uri).unwrap_err().to_string();
            assert!(said.contains(why), "{said}");
        }
    }
}
