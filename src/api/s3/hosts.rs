//! Virtual hosts: buckets in host names.

use s3s::S3Result;
use s3s::host::{S3Host, VirtualHost};

/// Host names below which the first label is a bucket. No other host name ever is one.
#[derive(Debug, Clone)]
pub(super) struct Hosts {
    /// In lower case.
    pub domains: Vec<String>,
}

impl Hosts {
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
