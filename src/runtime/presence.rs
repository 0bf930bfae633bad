//! Whether another process of this machine is still there.
//!
//! A member of a cluster holds a Unix socket of a name that is made of its incarnation and is in no file system. The kernel takes
//! the name back when the process is gone, however it went, and not before. So a daemon that is started again knows at once that
//! the process before it is dead, and not only stopped.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The name is held for as long as this is there.
#[derive(Debug)]
pub struct Presence(#[expect(dead_code, reason = "held, not used")] UnixDatagram);

/// What another process of this machine tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessSeen {
    /// It is there, whether or not it runs.
    Alive,
    /// It is gone.
    Dead,
    /// It cannot be told: it is not of this machine, or not of this network on it.
    Unknown,
}

impl Presence {
    /// Shows that the process with this incarnation is there.
    ///
    /// # Errors
    /// The operating system's.
    pub fn show(incarnation: &str) -> io::Result<Self> {
        UnixDatagram::bind_addr(&name(incarnation)?).map(Self)
    }
}

fn name(incarnation: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("esker/{incarnation}"))
}

/// The machine, and the network in it, of this process; empty if the system does not tell. Names of sockets are those of a network.
pub fn host() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let network = std::fs::read_link("/proc/self/ns/net");
    match (boot, network) {
        (Ok(boot), Ok(network)) => format!("{}/{}", boot.trim(), network.display()),
        _ => String::new(),
    }
}

/// Looks for the process with this incarnation on `host`.
pub fn look(incarnation: &str, host: &str) -> ProcessSeen {
    if host.is_empty() || host != self::host() {
        return ProcessSeen::Unknown;
    }
    // Nothing is sent, and nobody has to accept anything.
    match name(incarnation).and_then(|name| UnixDatagram::unbound()?.connect_addr(&name)) {
        Ok(()) => ProcessSeen::Alive,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => ProcessSeen::Dead,
        Err(_) => ProcessSeen::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_seen_until_it_is_gone_and_one_elsewhere_is_not_told() {
        let incarnation = format!("test-{}", std::process::id());
        let presence = Presence::show(&incarnation).unwrap();

        assert_eq!(look(&incarnation, &host()), ProcessSeen::Alive);
        assert!(Presence::show(&incarnation).is_err(), "two processes with one name");
        assert_eq!(look(&incarnation, "another machine"), ProcessSeen::Unknown);
        assert_eq!(look(&incarnation, ""), ProcessSeen::Unknown);
        drop(presence);
        assert_eq!(look(&incarnation, &host()), ProcessSeen::Dead);
    }
}
