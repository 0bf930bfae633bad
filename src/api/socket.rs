//! Names of Unix sockets: only a socket ever gives way to one, and a daemon removes no name but its own.

use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// The name of a socket that this process listens on.
#[derive(Debug)]
pub struct SocketName {
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
}

/// Listens on a Unix socket at `path`, in place of one on which nobody listens any more.
///
/// # Errors
/// When there is something else at `path`, somebody listens there, or the system does not let us.
pub fn bind(path: &Path) -> io::Result<(UnixListener, SocketName)> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(there) if !there.file_type().is_socket() => {
            let message = "there is something that is no socket, it is left alone: move it away, or name another path";
            return Err(io::Error::new(ErrorKind::AlreadyExists, message));
        }
        // The name of a daemon that was killed.
        Ok(_) if UnixStream::connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused) => {
            fs::remove_file(path)?;
        }
        Ok(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    let file = file_of(&fs::symlink_metadata(path)?);
    Ok((listener, SocketName { path: path.to_owned(), file }))
}

impl SocketName {
    /// Removes the name, unless it has become that of something else.
    pub fn remove(&self) {
        let removed = match fs::symlink_metadata(&self.path) {
            Ok(there) if file_of(&there) == self.file => fs::remove_file(&self.path),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            tracing::debug!(path = %self.path.display(), %error, "the socket's name could not be removed");
        }
    }
}

fn file_of(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_name_of_a_socket_that_nobody_listens_on_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link, socket] = ["file", "link", "socket"].map(|name| folder.path().join(name));
        fs::write(&file, "precious").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();

        for taken in [&file, &link] {
            assert_eq!(bind(taken).unwrap_err().kind(), ErrorKind::AlreadyExists);
        }
        assert_eq!(fs::read(&file).unwrap(), b"precious");
        let (living, _) = bind(&socket).unwrap();
        assert_eq!(bind(&socket).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(living);
        assert!(bind(&socket).is_ok(), "the one that listened there was killed");
    }

    #[tokio::test]
    async fn a_name_that_belongs_to_another_by_now_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (_first, name) = bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another's").unwrap();

        name.remove();

        assert_eq!(fs::read(&path).unwrap(), b"another's");
        fs::remove_file(&path).unwrap();
        let (_second, name) = bind(&path).unwrap();
        name.remove();
        assert!(!path.exists());
    }
}
