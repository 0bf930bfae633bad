//! Rules about addresses, names and credentials, of the daemon's doors and of the store's.

use std::net::{IpAddr, SocketAddr};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tracing_subscriber::EnvFilter;

use super::rules::Rules;
use crate::config::choices::{ClientAuth, TlsDoors};
use crate::config::schema::Config;
use crate::config::url::{StoreUrl, is_azure_account};
use crate::config::values::Secret;

/// The longest path that fits into the address of a Unix socket.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Checks the rules of this module. Returns the addresses of the S3 door and the native API if both are good.
pub(super) fn check(rules: &mut Rules) -> Option<(SocketAddr, SocketAddr)> {
    let server = &rules.config.server;
    check_names(rules);
    check_store(rules);
    check_keys(rules);
    check_tls(rules);
    let s3 = check_address(rules, "server.s3", &server.s3);
    let api = check_address(rules, "server.api", &server.api);
    check_exposure(rules, s3, api);
    check_cluster(rules, api);
    s3.zip(api)
}

/// What a daemon needs to be one of several.
fn check_cluster(rules: &mut Rules, api: Option<SocketAddr>) {
    const ENABLED: &str = "cluster.enabled";
    let Config { cluster, store, catalog, tls, .. } = rules.config;
    if let Some(token) = &cluster.token {
        rules.require(is_token(token.expose()), &["cluster.token"], "must be of letters, digits and `-._~+/=`");
    }
    if !cluster.enabled {
        return;
    }
    for (key, url) in [("store.url", Some(&store.url)), ("catalog.url", catalog.url.as_ref())] {
        rules.require(
            url.is_none_or(StoreUrl::is_service),
            &[ENABLED, key],
            "several daemons need an object store (`s3://`, `gs://`, `az://`): one daemon has a folder of a disk, or of an HDFS",
        );
    }
    let is_plain = |url: &String| url.to_ascii_lowercase().starts_with("http://");
    rules.require(
        cluster.advertised_url.as_ref().is_none_or(is_plain),
        &["cluster.advertised-url"],
        "peers speak plain HTTP to each other: must begin with `http://`",
    );
    rules.require(
        tls.cert.is_none() || tls.doors == TlsDoors::S3,
        &[ENABLED, "tls.doors"],
        "peers speak plain HTTP to the native API: set tls.doors = \"s3\", and keep server.api in a network of their own",
    );
    let Some(api) = api else { return };
    rules.require(
        cluster.advertised_url.is_some() || !api.ip().is_unspecified(),
        &["cluster.advertised-url", "server.api"],
        "peers cannot connect to `0.0.0.0`: say under which address they reach this daemon",
    );
    rules.require(
        cluster.token.is_some() || api.ip().to_canonical().is_loopback(),
        &["cluster.token", "server.api"],
        "peers on other machines need a token that all of them have",
    );
}

/// Texts that must not be empty or odd.
fn check_names(rules: &mut Rules) {
    let (server, cluster) = (&rules.config.server, &rules.config.cluster);
    rules.require(is_name(&server.region), &["server.region"], NAME_RULE);
    if let Some(region) = &rules.config.store.region {
        rules.require(is_name(region), &["store.region"], NAME_RULE);
    }
    if let Some(id) = &cluster.daemon_id {
        rules.require(is_name(id), &["cluster.daemon-id"], NAME_RULE);
    }
    if let Some(url) = &cluster.advertised_url {
        rules.require(is_http_url(url), &["cluster.advertised-url"], HTTP_URL_RULE);
    }
    rules.require(
        server.virtual_host_domains.iter().all(|domain| is_domain(domain)),
        &["server.virtual-host-domains"],
        "each must be a host name such as `s3.local`, with a port if clients send one",
    );
    rules.require(
        server.buckets.iter().all(|bucket| s3s::path::check_bucket_name(bucket)),
        &["server.buckets"],
        "each must be a bucket name as in S3: 3 to 63 of `a-z`, `0-9`, `.` and `-`, such as `checkpoints`",
    );
    if let Some(path) = &server.api_unix_socket {
        rules.require(
            (1..=SOCKET_PATH_BYTES_MAX).contains(&path.as_os_str().len()),
            &["server.api-unix-socket"],
            format!("must be a path of 1 to {SOCKET_PATH_BYTES_MAX} bytes"),
        );
    }
    rules.require(
        !rules.config.telemetry.access_log.trim().is_empty(),
        &["telemetry.access-log"],
        "must be `off`, `stdout` or the path of a file",
    );
    let filter = &rules.config.telemetry.log_filter;
    let parsed = EnvFilter::try_new(filter);
    rules.require(
        !filter.trim().is_empty() && parsed.is_ok(),
        &["telemetry.log-filter"],
        "must be a level, `info`, or levels per module, `info,esker::merge=debug`",
    );
}

const NAME_RULE: &str = "must be 1 to 64 letters, digits, `-`, `_` or `.`";

fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=64).contains(&name.len()) && name.chars().all(allowed)
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = domain.split_once(':').unwrap_or((domain, "80"));
    let label = |label: &str| {
        !label.is_empty() && label.len() <= 63 && label.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
    };
    host.split('.').all(label) && port.parse::<u16>().is_ok()
}

/// Credentials at the doors.
fn check_keys(rules: &mut Rules) {
    let auth = &rules.config.auth;
    rules.require(
        auth.access_key.is_some() == auth.secret_key.is_some(),
        &["auth.access-key", "auth.secret-key"],
        "both or neither must be set",
    );
    let main = auth.access_key.as_deref().zip(auth.secret_key.as_ref());
    let listed = auth.keys.iter().map(|key| (key.access_key.as_str(), &key.secret_key));
    let pairs: Vec<(&str, &Secret)> = main.into_iter().chain(listed).collect();
    rules.require(
        pairs.iter().all(|(access, secret)| is_access_key(access) && !secret.expose().is_empty()),
        &["auth.access-key", "auth.secret-key", "auth.keys"],
        ACCESS_KEY_RULE,
    );
    rules.require(
        all_different(pairs.iter().map(|(access, _)| *access)),
        &["auth.access-key", "auth.keys"],
        "an access key must not appear twice",
    );
    rules.require(
        auth.keys.iter().flat_map(|key| &key.prefixes).all(|prefix| is_prefix(prefix)),
        &["auth.keys"],
        PREFIX_RULE,
    );
    rules.require(
        auth.tokens.iter().all(|token| is_token(token.expose()))
            && all_different(auth.tokens.iter().map(Secret::expose)),
        &["auth.tokens"],
        TOKEN_RULE,
    );
}

pub(in crate::config) const ACCESS_KEY_RULE: &str =
    "an access key must be 1 to 128 printable characters without space, `/`, `,` or `=`, a secret not empty";
pub(in crate::config) const PREFIX_RULE: &str =
    "a prefix must be `bucket` or `bucket/key`, without a slash in front; no prefixes at all means everything";
pub(in crate::config) const TOKEN_RULE: &str = "tokens must be different, of letters, digits and `-._~+/=`";

/// Whether this names something that a key may touch.
pub(in crate::config) fn is_prefix(prefix: &str) -> bool {
    !prefix.is_empty() && !prefix.starts_with('/')
}

/// What goes together in `[tls]`. Whether the files are good is seen when they are read.
fn check_tls(rules: &mut Rules) {
    let tls = &rules.config.tls;
    rules.require(tls.cert.is_some() == tls.key.is_some(), &["tls.cert", "tls.key"], "both or neither must be set");
    let asks = client_auth(rules.config) != ClientAuth::Off;
    rules.require(
        !asks || tls.client_ca.is_some() && tls.cert.is_some(),
        &["tls.client-auth", "tls.client-ca", "tls.cert"],
        "certificates of clients are checked against tls.client-ca, on a door that has tls.cert",
    );
    rules.warn_if(
        !asks && tls.client_ca.is_some(),
        &["tls.client-ca", "tls.client-auth"],
        "nobody is asked for a certificate",
    );
}

/// What is asked of clients.
pub(super) fn client_auth(config: &Config) -> ClientAuth {
    let unsaid = if config.tls.client_ca.is_some() { ClientAuth::Required } else { ClientAuth::Off };
    config.tls.client_auth.unwrap_or(unsaid)
}

/// Whether everybody who gets through to this door has shown a certificate.
fn certificates_are_required(rules: &Rules, other_door: TlsDoors) -> bool {
    let tls = &rules.config.tls;
    client_auth(rules.config) == ClientAuth::Required && tls.doors != other_door
}

/// Whether the header of a signed request can carry this key.
pub(in crate::config) fn is_access_key(key: &str) -> bool {
    (1..=128).contains(&key.len()) && key.chars().all(|c| c.is_ascii_graphic() && !"/,=".contains(c))
}

/// Whether `Authorization: Bearer` can carry this token (RFC 6750).
pub(in crate::config) fn is_token(token: &str) -> bool {
    !token.is_empty() && token.chars().all(|c| c.is_ascii_alphanumeric() || "-._~+/=".contains(c))
}

fn all_different<'a>(names: impl Iterator<Item = &'a str>) -> bool {
    let mut names: Vec<&str> = names.collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    names.len() == all
}

fn check_address(rules: &mut Rules, key: &str, text: &str) -> Option<SocketAddr> {
    let address = text.trim().parse().ok();
    rules.require(
        address.is_some(),
        &[key],
        "must be an IP address and a port, such as `127.0.0.1:9000`, `0.0.0.0:9000` or `[::]:9000`",
    );
    address
}

/// Other hosts are served with credentials, or when the user insists.
fn check_exposure(rules: &mut Rules, s3: Option<SocketAddr>, api: Option<SocketAddr>) {
    const INSECURE: &str = "auth.insecure";
    let auth = &rules.config.auth;
    let same = s3.is_some() && s3 == api && s3.is_some_and(|address| address.port() != 0);
    rules.require(!same, &["server.s3", "server.api"], "the doors must not share an address");
    let no_file = auth.keys_file.is_none();
    let no_keys = no_file && auth.access_key.is_none() && auth.keys.is_empty();
    let no_tokens = no_file && auth.tokens.is_empty();
    let no_keys = no_keys && !certificates_are_required(rules, TlsDoors::Api);
    let no_tokens = no_tokens && !certificates_are_required(rules, TlsDoors::S3);
    for (address, open, key, credentials) in
        [(s3, no_keys, "server.s3", "auth.access-key"), (api, no_tokens, "server.api", "auth.tokens")]
    {
        let exposed = open && address.is_some_and(|address| !address.ip().to_canonical().is_loopback());
        rules.require(
            !exposed || auth.insecure,
            &[key, credentials, INSECURE],
            format!(
                "other hosts are served with credentials only: set {credentials}, tls.client-auth = \"required\", or \
                 {INSECURE} = true"
            ),
        );
        rules.warn_if(exposed && auth.insecure, &[key, INSECURE], "whoever reaches this address can read and delete");
    }
}

fn check_store(rules: &mut Rules) {
    const ENDPOINT: &str = "store.endpoint";
    let store = &rules.config.store;
    rules.require(
        store.access_key.is_some() == store.secret_key.is_some(),
        &["store.access-key", "store.secret-key"],
        "both or neither must be set",
    );
    if let Some(endpoint) = &store.endpoint {
        rules.require(is_http_url(endpoint), &[ENDPOINT], HTTP_URL_RULE);
        rules.require(
            store.allow_http || !endpoint.to_ascii_lowercase().starts_with("http://") || is_loopback_url(endpoint),
            &[ENDPOINT, "store.allow-http"],
            "an endpoint without TLS on another machine must be allowed by `allow-http = true`",
        );
    }
    let catalog_url = rules.config.catalog.url.as_ref().filter(|url| url.is_service());
    let kind = |url: &StoreUrl| (url.is_s3(), url.is_gcs(), url.is_azure());
    rules.require(
        store.endpoint.is_none()
            || !store.url.is_service()
            || catalog_url.is_none_or(|url| kind(url) == kind(&store.url)),
        &[ENDPOINT, "store.url", "catalog.url"],
        "is the address of one service, and the URLs are of two: put both in one, or leave it out",
    );
    check_azure(rules);
    let is_used = |is: fn(&StoreUrl) -> bool| is(&store.url) || catalog_url.is_some_and(is);
    for (key, set, used, warning) in [
        (
            ENDPOINT,
            store.endpoint.is_some(),
            is_used(StoreUrl::is_service),
            "has no effect, the store is not S3, Google Cloud Storage or Azure",
        ),
        ("store.region", store.region.is_some(), is_used(StoreUrl::is_s3), NOT_S3),
        ("store.access-key", store.access_key.is_some(), is_used(StoreUrl::is_s3), NOT_S3),
        (
            "store.gcs.service-account",
            store.gcs.service_account.is_some(),
            is_used(StoreUrl::is_gcs),
            "has no effect, the store is not Google Cloud Storage (`gs://`)",
        ),
        ("store.azure.account", store.azure.account.is_some(), is_used(StoreUrl::is_azure), NOT_AZURE),
        ("store.azure.account-key", store.azure.account_key.is_some(), is_used(StoreUrl::is_azure), NOT_AZURE),
    ] {
        rules.warn_if(set && !used, &[key, "store.url"], warning);
    }
}

const NOT_S3: &str = "has no effect, the store is not S3";
const NOT_AZURE: &str = "has no effect, the store is not Azure (`az://`, `abfss://`)";

fn check_azure(rules: &mut Rules) {
    const ACCOUNT: &str = "store.azure.account";
    let (store, catalog) = (&rules.config.store, &rules.config.catalog);
    let azure = &store.azure;
    if let Some(account) = &azure.account {
        rules.require(is_azure_account(account), &[ACCOUNT], "an account has 3 to 24 small letters and digits");
        for (key, url) in [("store.url", Some(&store.url)), ("catalog.url", catalog.url.as_ref())] {
            let other = url.and_then(StoreUrl::azure_account).is_some_and(|named| named != account);
            rules.require(!other, &[ACCOUNT, key], "the URL names another account: leave one of them out");
        }
    }
    let is_base64 = |key: &Secret| !key.expose().is_empty() && BASE64_STANDARD.decode(key.expose()).is_ok();
    rules.require(
        azure.account_key.as_ref().is_none_or(is_base64),
        &["store.azure.account-key"],
        "a key is written in Base64, as Azure shows it",
    );
}

/// Whether what goes to this URL stays on this machine.
pub(super) fn is_loopback_url(url: &str) -> bool {
    let Some((_, rest)) = url.split_once("://") else { return false };
    let authority = rest.split('/').next().unwrap_or_default();
    let host = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, _)) => host,
        None => authority.split(':').next().unwrap_or_default(),
    };
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|ip: IpAddr| ip.to_canonical().is_loopback())
}

const HTTP_URL_RULE: &str = "must be `http://` or `https://`, a host, and no user, password or query";

fn is_http_url(url: &str) -> bool {
    let rest = url.split_once("://").filter(|(scheme, _)| {
        let scheme = scheme.to_ascii_lowercase();
        scheme == "http" || scheme == "https"
    });
    let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '@' | '?' | '#');
    rest.is_some_and(|(_, rest)| !rest.is_empty() && !rest.starts_with(['/', ':']) && !rest.contains(odd))
}
