//! A `_metadata` with other paths in it: that of a checkpoint whose files move to another place.
//!
//! Files in the checkpoint's own folder have relative paths, which stay. Everything else has a URI: the files that checkpoints
//! share, and, where Flink itself has merged files, the folders that it deletes as a whole. Of state that is inside the file
//! only the name looks like a path; nothing is ever read or deleted there, so it stays.

use super::cursor::{MetadataError, text_bytes};
use super::metadata::{Found, NamedPath, walk_metadata};

/// A URI in a `_metadata`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WrittenPath<'a> {
    /// Of a file.
    File(&'a str),
    /// Of a folder.
    Folder(&'a str),
}

/// Why there is no other one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RelocateError {
    /// It cannot be read.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// There is no room for a path.
    #[error("{path} has more than the 65535 bytes that a path may have there")]
    TooLong {
        /// The new path.
        path: String,
    },
    /// One file would take the place of another.
    #[error("{first} and {second} would both become {to}: move them one by one, below folders of their own")]
    SamePlace {
        /// One of them.
        first: String,
        /// The other one.
        second: String,
        /// Where they would go.
        to: String,
    },
}

/// Returns `bytes` with another URI wherever `to` has one; all else stays as it is, byte for byte.
///
/// # Errors
/// [`RelocateError`].
pub fn relocate_metadata(
    bytes: &[u8],
    to: &mut dyn FnMut(WrittenPath<'_>) -> Option<String>,
) -> Result<Vec<u8>, RelocateError> {
    let mut moved = vec![];
    walk_metadata(bytes, &mut |found| {
        let (path, text) = match &found {
            Found::State { state, text } => match &state.path {
                NamedPath::Absolute(uri) => (to(WrittenPath::File(uri)), text),
                NamedPath::Relative(_) => (None, text),
            },
            Found::Folder { uri, text } => (to(WrittenPath::Folder(uri)), text),
        };
        moved.extend(path.map(|path| (text.clone(), path)));
    })?;
    let mut written = Vec::with_capacity(bytes.len());
    let mut at = 0;
    for (text, path) in moved {
        written.extend_from_slice(&bytes[at..text.start]);
        let Some(text_of_path) = text_bytes(&path) else { return Err(RelocateError::TooLong { path }) };
        written.extend(text_of_path);
        at = text.end;
    }
    written.extend_from_slice(&bytes[at..]);
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::super::metadata::read_metadata;
    use super::*;

    const SAMPLES: [&[u8]; 4] = [
        include_bytes!("../../tests/data/flink-metadata/flink-1.13-v3.bin"),
        include_bytes!("../../tests/data/flink-metadata/flink-1.20-v4.bin"),
        include_bytes!("../../tests/data/flink-metadata/flink-2.3-v5.bin"),
        include_bytes!("../../tests/data/flink-metadata/flink-2.3-v6.bin"),
    ];

    fn names(bytes: &[u8]) -> Vec<String> {
        let mut names = vec![];
        read_metadata(bytes, &mut |state| names.push(format!("{state:?}"))).unwrap();
        names
    }

    fn uris(bytes: &[u8]) -> Vec<String> {
        let mut uris = vec![];
        let same = relocate_metadata(bytes, &mut |path| {
            let (WrittenPath::File(uri) | WrittenPath::Folder(uri)) = path;
            uris.push(uri.to_owned());
            None
        });
        assert_eq!(same.unwrap(), bytes, "nothing was moved, and something changed");
        uris
    }

    #[test]
    fn paths_that_move_are_found_where_they_went_and_all_else_stays() {
        for sample in SAMPLES {
            for place in ["hdfs://namenode:8020/a/ü\u{1f40b}", "file:", ""] {
                let moved = relocate_metadata(sample, &mut |path| {
                    let (WrittenPath::File(uri) | WrittenPath::Folder(uri)) = path;
                    Some(format!("{place}{}", uri.strip_prefix("s3://state").unwrap()))
                });

                let moved = moved.unwrap();
                let expected: Vec<_> = names(sample).iter().map(|name| name.replace("s3://state", place)).collect();
                assert_eq!(names(&moved), expected);
                let expected: Vec<_> = uris(sample).iter().map(|uri| uri.replace("s3://state", place)).collect();
                assert_eq!(uris(&moved), expected);
                let back = relocate_metadata(&moved, &mut |path| {
                    let (WrittenPath::File(uri) | WrittenPath::Folder(uri)) = path;
                    Some(format!("s3://state{}", uri.strip_prefix(place).unwrap()))
                });
                assert_eq!(back.unwrap(), sample);
            }
        }
    }

    #[test]
    fn folders_that_flink_deletes_as_a_whole_move_too() {
        let mut folders = vec![];
        relocate_metadata(SAMPLES[3], &mut |path| {
            if let WrittenPath::Folder(uri) = path {
                folders.push(uri.to_owned());
            }
            None
        })
        .unwrap();

        assert!(!folders.is_empty() && folders.iter().all(|uri| uri.starts_with("s3://state/")), "{folders:?}");
    }

    #[test]
    fn a_path_that_there_is_no_room_for_and_a_torn_file_are_refused() {
        let long = "a".repeat(65_536);
        let refused = relocate_metadata(SAMPLES[1], &mut |_| Some(long.clone()));
        assert_eq!(refused, Err(RelocateError::TooLong { path: long }));

        let torn = relocate_metadata(&SAMPLES[1][..100], &mut |_| None);
        assert!(matches!(torn, Err(RelocateError::Metadata(_))), "{torn:?}");
    }
}
