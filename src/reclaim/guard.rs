//! Notices when something is off: nothing is destroyed then, and the log says why.

use crate::model::PhysicalFileId;

/// More unnamed files than this, and than [`UNNAMED_SHARE_MAX`] of all: this is not the catalog that belongs to them.
const UNNAMED_FILES_MAX: usize = 64;
const UNNAMED_SHARE_MAX: f64 = 0.5;

/// Why nothing is deleted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refused {
    /// Files of a later epoch than the catalog's own.
    #[error(
        "{0} was written in a later epoch than the catalog's ({1}): the catalog is older than the files. Nothing is swept. Put \
         the newer catalog back, or rebuild it with `esker rebuild`"
    )]
    CatalogOlder(PhysicalFileId, u64),
    /// Most of what is there is unknown.
    #[error(
        "{unnamed} of {listed} files are not in the catalog: it may be the wrong one. Nothing is swept. If it is the right one, \
         run `esker gc --force`"
    )]
    TooMuch {
        /// Files that the catalog does not name.
        unnamed: usize,
        /// Files that are there.
        listed: usize,
    },
}

/// Whether files that the catalog does not name may be taken for litter.
///
/// # Errors
/// [`Refused`] if the catalog does not look like the one that wrote the files.
pub fn check_unnamed(epoch: u64, unnamed: &[PhysicalFileId], listed: usize) -> Result<(), Refused> {
    if let Some(newer) = unnamed.iter().find(|file| file.epoch() > epoch) {
        return Err(Refused::CatalogOlder(newer.clone(), epoch));
    }
    if unnamed.len() > UNNAMED_FILES_MAX && unnamed.len() as f64 > listed as f64 * UNNAMED_SHARE_MAX {
        return Err(Refused::TooMuch { unnamed: unnamed.len(), listed });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalog_that_does_not_belong_to_the_files_is_noticed() {
        let file = |epoch, n| PhysicalFileId::new(None, epoch, n);
        let many: Vec<PhysicalFileId> = (0..100).map(|n| file(1, n)).collect();

        assert_eq!(check_unnamed(5, &[file(4, 1), file(5, 2)], 2), Ok(()));
        assert!(matches!(check_unnamed(5, &[file(6, 1)], 2), Err(Refused::CatalogOlder(..))));
        assert!(matches!(check_unnamed(5, &many, 150), Err(Refused::TooMuch { unnamed: 100, listed: 150 })));
        assert_eq!(check_unnamed(5, &many, 1000), Ok(()));
    }
}
