//! One line for a newer owner instead of many.
//!
//! When a newer owner shuts the journal out, each of SlateDB's background tasks logs that as an error of its own. The catalog
//! says the same once, in words that an operator knows. What SlateDB says of it is left out of the log, unless the log's
//! filter asks for SlateDB's debug lines. Whatever else SlateDB says stays.

use std::fmt;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer};

/// Leaves out what SlateDB says of a newer owner.
#[derive(Debug)]
pub struct Quiet {
    wants_all: bool,
}

impl Quiet {
    /// For a log whose own filter is `log_filter`.
    pub fn new(log_filter: &str) -> Self {
        let targets = log_filter.parse::<Targets>();
        Self { wants_all: targets.is_ok_and(|targets| targets.would_enable("slatedb", &Level::DEBUG)) }
    }
}

impl<S: Subscriber> Layer<S> for Quiet {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        if self.wants_all || *event.metadata().level() > Level::WARN {
            return true;
        }
        let mut said = Said { target: event.metadata().target().to_owned(), message: String::new() };
        event.record(&mut said);
        !(said.target.starts_with("slatedb") && tells_of_newer_owner(&said.message))
    }
}

/// The word of SlateDB's error for it, as its tasks log it.
fn tells_of_newer_owner(message: &str) -> bool {
    message.contains("error=Fenced")
}

/// The origin of an event. SlateDB logs through the crate `log`, whose events carry their origin in a field.
struct Said {
    target: String,
    message: String,
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "log.target" => self.target = value.to_owned(),
            "message" => self.message = value.to_owned(),
            _ => {}
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The log that this filter makes of these two lines and one of our own.
    fn logged(filter: &str) -> Vec<String> {
        let lines = Lines::default();
        let writer = lines.clone();
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(log.with(Quiet::new(filter)), || {
            tracing::error!(target: "slatedb::dispatcher", "background task failed [name=a, error=Fenced, panic=None]");
            tracing::error!("log.target" = "slatedb::dispatcher", "background task failed [name=b, error=Fenced]");
            tracing::error!(target: "slatedb::dispatcher", "background task failed [name=c, error=IoError]");
            tracing::error!(target: "esker::catalog", "the catalog is lost d error=Fenced");
        });
        let bytes = lines.0.lock().clone();
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn only_what_slatedb_says_of_a_newer_owner_is_left_out_unless_debug_lines_are_wanted() {
        let quiet = logged("info,slatedb=warn,s3s=off");

        assert_eq!(quiet.len(), 2, "{quiet:?}");
        assert!(quiet[0].contains("name=c") && quiet[1].contains("is lost d"), "{quiet:?}");
        for all in ["debug", "info,slatedb=debug", "trace,s3s=off"] {
            assert_eq!(logged(all).len(), 4, "{all}");
        }
    }
}
