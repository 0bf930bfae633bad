//! Files that a step left behind when it failed.

use std::fs;
use std::io;
use std::path::Path;

/// Removes a file that nobody needs.
///
/// A failure is logged and not returned: the caller is about to report why the file is not needed, which matters more.
pub fn remove_leftover(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::debug!(path = %path.display(), %error, "a file that nobody needs stays");
        }
        Ok(()) | Err(_) => {}
    }
}
