//! Which shards a request is about, as its head tells.
//!
//! What the head says is believed here, because nothing is answered by it: a request that says something else than it means is refused,
//! or answered, by the engine that it is led to, like any.

use http::request::Parts;
use http::{Method, Uri};
use percent_encoding::percent_decode_str;

use crate::api::s3::Hosts;
use crate::model::{OF_BUCKETS, Routing};

/// Who is to answer a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestTarget {
    /// The owner of one shard.
    Shard(u32),
    /// The owner of any shard, which asks the others.
    Any,
    /// The owners of all shards, and their answers are put together.
    All(Joined),
    /// The owners of all shards: the one that knows of it answers.
    WhoKnows,
    /// The job in its body tells.
    JobOfBody,
    /// The job or the segments in its body tell.
    Restore,
}

/// What all owners are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joined {
    /// Jobs.
    Jobs,
    /// One page of objects.
    Objects,
    /// Space, by job, lane or checkpoint.
    Space,
    /// Anything that is counted.
    Counts,
}

impl RequestTarget {
    /// Of a request that came to the S3 door.
    pub fn of_s3(head: &Parts, hosts: &Hosts, routing: Routing) -> Self {
        let (bucket, key) = hosts.place(&head.uri, &head.headers);
        let Some(bucket) = bucket else { return Self::Shard(OF_BUCKETS) };
        if let Some(key) = key {
            return Self::Shard(routing.of_key(&bucket, &key));
        }
        match head.method {
            Method::GET if lists(&head.uri) => {
                let prefix = parameter(&head.uri, "prefix").unwrap_or_default();
                routing.of_prefix(&bucket, &prefix).map_or(Self::Any, Self::Shard)
            }
            Method::POST if parameter(&head.uri, "delete").is_some() => Self::Any,
            _ => Self::Shard(OF_BUCKETS),
        }
    }

    /// Of a request that came to the native API.
    pub fn of_api(head: &Parts, routing: Routing) -> Self {
        let path = head.uri.path();
        let Some(path) = path.strip_prefix("/v1/") else { return Self::Shard(OF_BUCKETS) };
        let of_job = |text: &str| Self::Shard(routing.of_job(&percent_decode_str(text).decode_utf8_lossy()));
        let mut parts = path.split('/');
        let (subject, of) = (parts.next().unwrap_or_default(), parts.next());
        match (subject, of) {
            ("jobs", None) if head.method == Method::POST => Self::JobOfBody,
            ("jobs", None) => Self::All(Joined::Jobs),
            ("jobs", Some(job)) => of_job(job),
            ("segments" | "handles", _) => Self::WhoKnows,
            ("restore", _) => Self::Restore,
            ("objects", _) => Self::All(Joined::Objects),
            ("space", _) => match parameter(&head.uri, "job") {
                Some(job) => Self::Shard(routing.of_job(&job)),
                None => Self::All(Joined::Space),
            },
            ("verify" | "reclaim" | "gc", _) => Self::All(Joined::Counts),
            // One shard after the other, as `after` says; what is wrong with that any owner can tell.
            ("audit", _) => {
                let after = parameter(&head.uri, "after").unwrap_or_default();
                let shard = after.split_once(':').and_then(|(shard, _)| shard.parse().ok());
                Self::Shard(shard.filter(|shard| *shard < routing.shards()).unwrap_or(OF_BUCKETS))
            }
            _ => Self::Shard(OF_BUCKETS),
        }
    }
}

/// Whether a GET of a bucket is about what is in it.
fn lists(uri: &Uri) -> bool {
    const OF_LISTS: [&str; 4] = ["list-type", "versions", "uploads", "prefix"];
    // All others name a part of the bucket.
    const OF_PARTS: [&str; 4] = ["max-keys", "delimiter", "marker", "encoding-type"];
    let is_of_client = |name: &str| name.get(..2).is_some_and(|begin| begin.eq_ignore_ascii_case("x-"));
    let mut names = names(uri).filter(|name| !is_of_client(name)).peekable();
    names.peek().is_none() || names.any(|name| OF_LISTS.contains(&&*name) || OF_PARTS.contains(&&*name))
}

fn names(uri: &Uri) -> impl Iterator<Item = String> {
    pairs(uri).map(|(name, _)| name)
}

fn pairs(uri: &Uri) -> impl Iterator<Item = (String, String)> {
    let parts = uri.query().unwrap_or_default().split('&').filter(|part| !part.is_empty());
    parts.map(|part| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        (decoded(name), decoded(value))
    })
}

/// As forms are read.
fn decoded(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

/// The value of a parameter of an address.
pub fn parameter(uri: &Uri, wanted: &str) -> Option<String> {
    pairs(uri).find(|(name, _)| name == wanted).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use http::header::HOST;

    use super::*;

    fn head(method: Method, uri: &str) -> Parts {
        http::Request::builder().method(method).uri(uri).header(HOST, "s3.local").body(()).unwrap().into_parts().0
    }

    #[test]
    fn keys_and_buckets_have_their_shards() {
        let (hosts, routing) = (Hosts { domains: vec!["s3.local".to_owned()] }, Routing::over(16));
        let of = |method: Method, uri: &str| RequestTarget::of_s3(&head(method, uri), &hosts, routing);
        let key = RequestTarget::Shard(routing.of_key("b", "d/a b"));

        assert_eq!(of(Method::GET, "/b/d/a%20b"), key);
        assert_eq!(of(Method::POST, "/b/d/a%20b?uploads"), key);
        assert_eq!(of(Method::DELETE, "/b/d/a%20b?uploadId=7"), key);
        for (method, uri) in [
            (Method::GET, "/"),
            (Method::PUT, "/b"),
            (Method::DELETE, "/b/"),
            (Method::HEAD, "/b"),
            (Method::GET, "/b?location"),
            (Method::GET, "/b?versioning&x-id=GetBucketVersioning"),
        ] {
            assert_eq!(of(method, uri), RequestTarget::Shard(OF_BUCKETS), "{uri}");
        }
        for uri in
            ["/b", "/b/", "/b?list-type=2&prefix=d%2F", "/b?uploads", "/b?versions&max-keys=1", "/b?x-id=ListObjects"]
        {
            assert_eq!(of(Method::GET, uri), RequestTarget::Any, "{uri}");
        }
        assert_eq!(of(Method::POST, "/b?delete"), RequestTarget::Any);
        let job = "0123456789abcdef0123456789abcdef";
        let listed = of(Method::GET, &format!("/b?list-type=2&prefix=d%2F{job}%2F"));
        assert_eq!(listed, RequestTarget::Shard(routing.of_key("b", &format!("d/{job}/x"))));
    }

    #[test]
    fn a_bucket_in_the_host_name_is_one() {
        let (hosts, routing) = (Hosts { domains: vec!["s3.local".to_owned()] }, Routing::over(16));
        let of_host = http::Request::get("/d/x").header(HOST, "b.s3.local:80").body(()).unwrap().into_parts().0;

        assert_eq!(RequestTarget::of_s3(&of_host, &hosts, routing), RequestTarget::Shard(routing.of_key("b", "d/x")));
    }

    #[test]
    fn what_names_a_job_goes_to_its_shard() {
        let routing = Routing::over(16);
        let of = |method: Method, uri: &str| RequestTarget::of_api(&head(method, uri), routing);

        assert_eq!(
            of(Method::POST, "/v1/jobs/a%2Fb/segments?checkpoint=1"),
            RequestTarget::Shard(routing.of_job("a/b"))
        );
        assert_eq!(of(Method::GET, "/v1/space?by=lane&job=a%2Fb"), RequestTarget::Shard(routing.of_job("a/b")));
        assert_eq!(of(Method::GET, "/v1/jobs"), RequestTarget::All(Joined::Jobs));
        assert_eq!(of(Method::POST, "/v1/jobs"), RequestTarget::JobOfBody);
        assert_eq!(of(Method::GET, "/v1/handles/x"), RequestTarget::WhoKnows);
        assert_eq!(of(Method::POST, "/v1/gc?force=true"), RequestTarget::All(Joined::Counts));
        assert_eq!(of(Method::POST, "/v1/orphans"), RequestTarget::Shard(OF_BUCKETS));
        assert_eq!(of(Method::GET, "/v1/audit?bucket=b"), RequestTarget::Shard(0));
        assert_eq!(of(Method::GET, "/v1/audit?after=7%3Ab%2Fd%2F1:2"), RequestTarget::Shard(7));
        assert_eq!(of(Method::GET, "/v1/audit?after=16%3A"), RequestTarget::Shard(OF_BUCKETS));
    }
}
