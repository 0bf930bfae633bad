//! Virtual hosts: buckets in host names.

use http::header::HOST;
use http::{HeaderMap, Uri};
use percent_encoding::percent_decode_str;
use s3s::S3Result;
use s3s::host::{S3Host, VirtualHost};

/// Host names below which the first label is a bucket. No other host name ever is one.
#[derive(Debug, Clone)]
pub struct Hosts {
    /// In lower case.
    pub domains: Vec<String>,
}

impl Hosts {
    /// Bucket and key of an address, as they are read.
    pub fn place(&self, uri: &Uri, headers: &HeaderMap) -> (Option<String>, Option<String>) {
        let path = percent_decode_str(uri.path().strip_prefix('/').unwrap_or_default()).decode_utf8_lossy();
        let (bucket, key) = match self.bucket(host_of(uri, headers)) {
            Some(bucket) => (&*bucket.to_ascii_lowercase(), &*path),
            None => path.split_once('/').unwrap_or((&path, "")),
        };
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        (some(bucket), some(key))
    }

    /// The bucket in a host name.
    pub(super) fn bucket<'a>(&self, host: &'a str) -> Option<&'a str> {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host,
        };
        self.domains.iter().find_map(|domain| {
            let at = name.len().checked_sub(domain.len())?;
            let (below, found) = (name.get(..at)?, name.get(at..)?);
            let bucket = below.strip_suffix('.').filter(|_| found.eq_ignore_ascii_case(domain))?;
            (!bucket.is_empty()).then_some(bucket)
        })
    }
}

/// The host that a request goes to.
pub(super) fn host_of<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> &'a str {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    host.or_else(|| Some(uri.authority()?.as_str())).unwrap_or_default()
}

impl S3Host for Hosts {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> S3Result<VirtualHost<'a>> {
        let found = VirtualHost::new(host);
        Ok(match self.bucket(host) {
            Some(bucket) => found.with_bucket(bucket.to_ascii_lowercase()),
            None => found,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_configured_domains_carry_buckets() {
        let hosts = Hosts { domains: vec!["s3.local".into()] };

        assert_eq!(hosts.bucket("b.s3.local"), Some("b"));
        assert_eq!(hosts.bucket("my.b.S3.Local:9000"), Some("my.b"));
        for host in
            ["s3.local", "s3.local:9000", ".s3.local", "xs3.local", "esker.svc.cluster.local", "localhost:9000", "ü"]
        {
            assert_eq!(hosts.bucket(host), None, "{host}");
        }
        assert_eq!(Hosts { domains: vec![] }.bucket("b.s3.local"), None);
    }
}
