//! TLS at the doors: handshakes, and certificates that change while the daemon runs.
//!
//! - [`files`]: what the configured files hold.
//! - [`validity`]: the time for which a certificate is good.
//!
//! A handshake is a part of the wait for the first head: it has its place, its memory and its time before its first byte is
//! read ([`super::peers`]). A request without TLS on a port that speaks it is answered as such: the first byte tells.
//!
//! # Invariants
//! - A connection keeps the certificate that it began with. What is new counts from the next handshake on.
//! - What cannot be used never takes the place of what can.

mod files;
mod validity;

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

pub use files::{TlsError, TlsFiles};

use crate::config::TlsSettings;
use crate::metrics::Metrics;
use crate::metrics::labels::{HandshakeFailure, ReloadOutcome, Reloadable};
use crate::runtime::Clock;

/// The first byte of a connection that begins a handshake; 0x80 is how an old client begins.
const HANDSHAKE: [u8; 2] = [0x16, 0x80];

/// Seconds before its first one in which a certificate is taken all the same: who signed it has another clock.
const EARLY_MAX: i64 = 10;

/// The identity of the doors. Clones share it.
#[derive(Clone)]
pub struct Tls(Arc<TlsShared>);

crate::runtime::opaque_debug!(Tls);

struct TlsShared {
    settings: TlsSettings,
    current: RwLock<Arc<ServerConfig>>,
    seen: Mutex<SeenFiles>,
    metrics: Metrics,
    clock: Clock,
}

/// The files as they were last looked at, good or bad.
struct SeenFiles {
    files: TlsFiles,
    /// The first second of a certificate that was refused because it is not good yet: time alone changes that.
    early: Option<i64>,
}

impl Tls {
    /// Shows the certificate of `files`.
    ///
    /// # Errors
    /// [`TlsError`] if they do not go together, or hold nothing that can be used.
    pub fn new(settings: TlsSettings, files: TlsFiles, metrics: Metrics, clock: Clock) -> Result<Self, TlsError> {
        let identity = files.identity(&settings, &clock)?;
        metrics.certificate_expiry.set(identity.expires);
        let (current, seen) = (RwLock::new(Arc::new(identity.config)), Mutex::new(SeenFiles { files, early: None }));
        Ok(Self(Arc::new(TlsShared { settings, current, seen, metrics, clock })))
    }

    /// Whether a connection that begins with this byte begins with a handshake.
    pub fn begins(byte: u8) -> bool {
        HANDSHAKE.contains(&byte)
    }

    /// Shakes hands.
    ///
    /// # Errors
    /// Why the client is not let in, or went away.
    ///
    /// # Cancel safety
    /// What is dropped closes the connection.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        socket: S,
    ) -> Result<TlsStream<S>, (HandshakeFailure, std::io::Error)> {
        let config = Arc::clone(&self.0.current.read());
        TlsAcceptor::from(config).accept(socket).await.map_err(|error| (failure_of(&error), error))
    }

    /// Counts a handshake that did not succeed.
    pub fn count(&self, failure: HandshakeFailure) {
        self.0.metrics.handshake_failures.of(failure).inc();
    }

    /// Looks at the files, and uses what is new in them.
    pub async fn reload(&self) {
        let shared = &*self.0;
        let latest = files::now(&shared.clock).saturating_add(EARLY_MAX);
        let files = match TlsFiles::read_again(&shared.settings).await {
            Ok(files) if shared.seen.lock().are(&files, latest) => return,
            Ok(files) => files,
            // It is told once, and not again while the files are missing.
            Err(error) if shared.seen.lock().files.set_missing() => return self.refuse(&error),
            Err(_) => return,
        };
        let identity = files.identity(&shared.settings, &shared.clock);
        let early = identity.as_ref().ok().map(|identity| identity.begins).filter(|begins| *begins > latest);
        let warnings = files.warnings(&shared.settings, &shared.clock);
        *shared.seen.lock() = SeenFiles { files, early };
        match (identity, early) {
            (Ok(_), Some(begins)) => self.refuse(&TlsError::early(&shared.settings, begins)),
            (Ok(identity), None) => {
                shared.metrics.certificate_expiry.set(identity.expires);
                shared.metrics.reloads.of((Reloadable::Certificate, ReloadOutcome::Loaded)).inc();
                tracing::info!(cert = %shared.settings.cert.display(), expires = validity::shown(identity.expires),
                    "a new certificate is in use");
                warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                *shared.current.write() = Arc::new(identity.config);
            }
            (Err(error), _) => self.refuse(&error),
        }
    }

    fn refuse(&self, error: &TlsError) {
        self.0.metrics.reloads.of((Reloadable::Certificate, ReloadOutcome::Refused)).inc();
        tracing::warn!(error = crate::error::chain(error), "the new certificate cannot be used, the old one stays");
    }
}

impl SeenFiles {
    /// Whether there is nothing new: these are the files, and a certificate among them that was too early still is.
    fn are(&self, files: &TlsFiles, latest: i64) -> bool {
        self.files == *files && self.early.is_none_or(|begins| begins > latest)
    }
}

fn failure_of(error: &std::io::Error) -> HandshakeFailure {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::NoCertificatesPresented | rustls::Error::InvalidCertificate(_)) => {
            HandshakeFailure::Certificate
        }
        Some(rustls::Error::AlertReceived(_)) => HandshakeFailure::Alert,
        Some(_) => HandshakeFailure::Protocol,
        None => HandshakeFailure::Broken,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicU64, Ordering};

    use esker_test_support::certs::Authority;

    use super::*;
    use crate::config::{ClientAuth, TlsDoors};

    const DAY_MILLIS: u64 = 24 * 60 * 60 * 1000;

    fn settings(folder: &Path) -> TlsSettings {
        let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
        TlsSettings { doors: TlsDoors::Both, cert, key, client_ca: None, client_auth: ClientAuth::Off }
    }

    #[tokio::test]
    async fn a_certificate_that_is_not_good_yet_waits_until_it_is() {
        let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new("a"));
        let (settings, metrics) = (settings(folder.path()), Metrics::new());
        let now = Clock::System.wall().0;
        let millis = Arc::new(AtomicU64::new(now));
        let clock = Clock::Manual(Arc::clone(&millis));
        authority.issue(&["localhost"]).write(folder.path());
        let files = TlsFiles::read(&settings).unwrap();
        let tls = Tls::new(settings, files, metrics.clone(), clock).unwrap();
        let old = Arc::clone(&tls.0.current.read());
        let counted = |outcome| metrics.reloads.of((Reloadable::Certificate, outcome)).get();

        // They are good from yesterday on, and it is the day before that.
        millis.store(now - 2 * DAY_MILLIS, Ordering::Relaxed);
        authority.issue(&["localhost"]).write(folder.path());
        for _ in 0..3 {
            tls.reload().await;
            assert!(Arc::ptr_eq(&old, &tls.0.current.read()));
        }
        assert_eq!((counted(ReloadOutcome::Refused), counted(ReloadOutcome::Loaded)), (1, 0));

        millis.store(now, Ordering::Relaxed);
        for _ in 0..3 {
            tls.reload().await;
            assert!(!Arc::ptr_eq(&old, &tls.0.current.read()));
        }
        assert_eq!((counted(ReloadOutcome::Refused), counted(ReloadOutcome::Loaded)), (1, 1));
    }
}
