//! `_metadata` of a checkpoint or savepoint: versions 3 to 6, as Flink 1.11 to 2.3 write it.
//!
//! All numbers are big endian; `utf` is a `u16` length and so many bytes in Java's form of UTF-8; `x*` is an `i32` count and
//! so many `x`.
//!
//! ```text
//! file         4960672d  version i32  checkpoint i64  master*  operator*  properties (from version 4)
//! master       c96b1696  bytes*
//! operator     name utf, uid utf (from version 5)  id 16 bytes  parallelism i32  max-parallelism i32
//!              coordinator stream  subtask*, or -1 for a finished one
//! subtask      index i32, and nothing more if it is below zero: finished
//!              (0 | 1 partitioned) (0 | 1 partitioned) keyed keyed input* output*
//! partitioned  00 | 04 states stream | 11 states dir utf, dir utf, empty u8, stream
//! states       (name utf  mode u8  offset-i64*)*
//! keyed        00 | 03 07 0c key groups | 05 0b incremental | 08 0e changelog | 09 changes inline | 0a 0d changes in files
//! stream       00 | 01 name utf, bytes* | 02 size i64, path utf | 03 key groups | 06 path utf, size i64
//!              0f start i64, size i64, scope i32, path utf, id utf | 10
//! input        (version 6: kind u8) subtask i32  2 x i32  offset-i64*  size i64  stream
//! output       the same; in version 6 both may be of a merged kind: subtask i32  size i64  stream  bytes*
//! properties   a serialized Java object, module `properties`
//! ```
//!
//! # Source
//! `Checkpoints`, `MetadataV2V3SerializerBase`, `MetadataV3Serializer` to `MetadataV6Serializer` and
//! `ChannelStateHandleSerializerV1` and `V2` of Flink 2.3.

use std::borrow::Cow;
use std::ops::Range;

use super::cursor::{Cursor, MetadataDamage, MetadataError};
use super::properties::walk_object;

/// The last part of the key of such a file.
pub const METADATA: &str = "_metadata";

const MAGIC: i32 = 0x4960_672d;
const MASTER_MAGIC: i32 = 0xc96b_1696_u32.cast_signed();
/// State handles inside of each other: Flink writes three.
const DEPTH_MAX: usize = 16;

/// What a file says of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MetadataSummary {
    /// The version of its form.
    pub version: u32,
    /// The number of the checkpoint.
    pub checkpoint: u64,
    /// Operators with state.
    pub operators: u64,
    /// Bytes of state that are in the file itself.
    pub inline_bytes: u64,
}

/// State in a file elsewhere: bytes `start..start + len` of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedState<'a> {
    /// The file.
    pub path: NamedPath<'a>,
    /// The first byte; above zero only in files that Flink has merged.
    pub start: u64,
    /// Number of bytes.
    pub len: u64,
    /// Whether it is in a file that Flink has merged.
    pub merged: bool,
}

/// The path of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedPath<'a> {
    /// A URI.
    Absolute(Cow<'a, str>),
    /// A path below the folder of `_metadata`.
    Relative(Cow<'a, str>),
}

/// What is found in a file on the way through it. `text` is where the text of a path is, with the length before it.
#[derive(Debug)]
pub(super) enum Found<'a> {
    /// State in a file.
    State { state: NamedState<'a>, text: Range<usize> },
    /// The URI of a folder that Flink deletes as a whole when nothing in it is needed any more.
    Folder { uri: Cow<'a, str>, text: Range<usize> },
}

/// Reads a `_metadata` and hands every file that it names to `tell`, in its order; one may come more than once.
///
/// # Errors
/// [`MetadataError`], with the byte. What was told before is named all the same.
pub fn read_metadata(bytes: &[u8], tell: &mut dyn FnMut(NamedState<'_>)) -> Result<MetadataSummary, MetadataError> {
    walk_metadata(bytes, &mut |found| {
        if let Found::State { state, .. } = found {
            tell(state);
        }
    })
}

/// The same with everything that has a path in it, in the order of the file.
pub(super) fn walk_metadata(bytes: &[u8], tell: &mut dyn FnMut(Found<'_>)) -> Result<MetadataSummary, MetadataError> {
    let mut cursor = Cursor::new(bytes);
    match cursor.i32() {
        Ok(MAGIC) => (),
        Ok(_) => return Err(MetadataError::NotMetadata),
        // Torn within the magic number, or something else that is short.
        Err(_) if !MAGIC.to_be_bytes().starts_with(bytes) => return Err(MetadataError::NotMetadata),
        Err(error) => return Err(error),
    }
    let version = cursor.i32()?.cast_unsigned();
    if !(3..=6).contains(&version) {
        return Err(MetadataError::Version(version));
    }
    let mut file =
        MetadataFile { cursor, version, summary: MetadataSummary { version, ..MetadataSummary::default() }, tell };
    file.read()?;
    Ok(file.summary)
}

struct MetadataFile<'a, 't> {
    cursor: Cursor<'a>,
    version: u32,
    summary: MetadataSummary,
    tell: &'t mut dyn FnMut(Found<'_>),
}

type Read<T = ()> = Result<T, MetadataError>;

impl<'a> MetadataFile<'a, '_> {
    fn read(&mut self) -> Read {
        self.summary.checkpoint = self.number()?;
        self.cursor.enter("the states of master hooks");
        for _ in 0..self.cursor.count(8)? {
            self.master()?;
        }
        self.cursor.enter("the list of operators");
        for _ in 0..self.cursor.count(29)? {
            self.operator()?;
            self.cursor.enter("the list of operators");
        }
        if self.version >= 4 {
            self.cursor.enter("the properties of the checkpoint");
            walk_object(&mut self.cursor)?;
        }
        Ok(())
    }

    /// An `i64` that is not below zero.
    fn number(&mut self) -> Read<u64> {
        let number = self.cursor.i64()?;
        u64::try_from(number).or_else(|_| self.cursor.damaged(8, MetadataDamage::Range(number)))
    }

    /// The size of a state; Flink writes -1 for one that is not known.
    fn size(&mut self) -> Read<u64> {
        let size = self.cursor.i64()?;
        if size == -1 {
            Ok(0)
        } else {
            u64::try_from(size).or_else(|_| self.cursor.damaged(8, MetadataDamage::Range(size)))
        }
    }

    /// A path, and where its text is.
    fn path(&mut self) -> Read<(Cow<'a, str>, Range<usize>)> {
        let begin = self.cursor.at();
        let path = self.cursor.text()?;
        Ok((path, begin..self.cursor.at()))
    }

    fn master(&mut self) -> Read {
        let magic = self.cursor.i32()?;
        if magic != MASTER_MAGIC {
            return self.cursor.damaged(4, MetadataDamage::Unknown(magic.into()));
        }
        self.summary.inline_bytes += self.cursor.block()?.len() as u64;
        Ok(())
    }

    fn operator(&mut self) -> Read {
        self.cursor.enter("an operator");
        self.summary.operators += 1;
        if self.version >= 5 {
            self.cursor.text()?;
            self.cursor.text()?;
        }
        self.cursor.take(16 + 4 + 4)?;
        self.cursor.enter("the state of a coordinator");
        self.stream(0)?;
        self.cursor.enter("an operator");
        let mut ahead = self.cursor.clone();
        if ahead.i32()? < 0 {
            self.cursor = ahead;
            return Ok(());
        }
        for _ in 0..self.cursor.count(4)? {
            self.cursor.enter("a subtask");
            if self.cursor.i32()? >= 0 {
                self.subtask()?;
            }
        }
        Ok(())
    }

    fn subtask(&mut self) -> Read {
        for _ in ["managed", "raw"] {
            self.cursor.enter("operator state");
            if self.cursor.i32()? != 0 {
                self.partitioned()?;
            }
        }
        for _ in ["managed", "raw"] {
            self.cursor.enter("keyed state");
            self.keyed(0)?;
        }
        for _ in ["input", "output"] {
            self.cursor.enter("channel state");
            for _ in 0..self.cursor.count(14)? {
                self.channel()?;
            }
        }
        Ok(())
    }

    fn partitioned(&mut self) -> Read {
        let kind = self.cursor.u8()?;
        match kind {
            0 => return Ok(()),
            4 | 17 => (),
            _ => return self.cursor.damaged(1, MetadataDamage::Unknown(kind.into())),
        }
        for _ in 0..self.cursor.count(7)? {
            self.cursor.text()?;
            self.cursor.u8()?;
            self.longs()?;
        }
        if kind == 17 {
            for _ in ["owned by the task", "shared"] {
                let (uri, text) = self.path()?;
                (self.tell)(Found::Folder { uri, text });
            }
            self.cursor.u8()?;
        }
        self.stream(0)
    }

    /// A list of `i64`, which nobody wants.
    fn longs(&mut self) -> Read {
        let count = self.cursor.count(8)?;
        self.cursor.take(count * 8).map(|_| ())
    }

    /// The key groups of a state, each with the place where it begins.
    fn key_groups(&mut self) -> Read {
        self.cursor.i32()?;
        self.longs()
    }

    fn keyed(&mut self, depth: usize) -> Read {
        let kind = self.cursor.u8()?;
        if depth >= DEPTH_MAX {
            return self.cursor.damaged(1, MetadataDamage::Depth);
        }
        match kind {
            0 => Ok(()),
            3 | 7 | 12 => {
                self.key_groups()?;
                self.stream(0)?;
                self.id_if(kind == 12)
            }
            5 | 11 => self.incremental(kind == 11),
            8 | 14 => self.changelog(kind == 14, depth),
            9 => self.changes_inline(),
            10 | 13 => self.changes_in_files(kind == 13),
            _ => self.cursor.damaged(1, MetadataDamage::Unknown(kind.into())),
        }
    }

    fn id_if(&mut self, written: bool) -> Read {
        if written { self.cursor.text().map(|_| ()) } else { Ok(()) }
    }

    fn incremental(&mut self, second: bool) -> Read {
        self.cursor.i64()?;
        self.cursor.text()?;
        self.cursor.take(4 + 4 + if second { 8 } else { 0 })?;
        self.stream(0)?;
        for _ in ["shared", "private"] {
            for _ in 0..self.cursor.count(3)? {
                self.cursor.text()?;
                self.stream(0)?;
            }
        }
        self.id_if(second)
    }

    fn changelog(&mut self, second: bool, depth: usize) -> Read {
        self.cursor.take(4 + 4 + 8)?;
        for _ in ["materialized", "not materialized"] {
            for _ in 0..self.cursor.count(1)? {
                self.keyed(depth + 1)?;
            }
        }
        self.cursor.take(8 + if second { 8 } else { 0 })?;
        self.id_if(true)
    }

    fn changes_inline(&mut self) -> Read {
        self.cursor.take(4 + 4 + 8 + 8)?;
        for _ in 0..self.cursor.count(8)? {
            self.cursor.i32()?;
            self.summary.inline_bytes += self.cursor.block()?.len() as u64;
        }
        self.id_if(true)
    }

    fn changes_in_files(&mut self, second: bool) -> Read {
        self.cursor.take(4 + 4)?;
        for _ in 0..self.cursor.count(9)? {
            self.cursor.i64()?;
            self.stream(0)?;
        }
        self.cursor.take(8 + 8)?;
        self.id_if(true)?;
        self.id_if(second)
    }

    fn channel(&mut self) -> Read {
        let kind = if self.version >= 6 { self.cursor.u8()? } else { 1 };
        match kind {
            1 | 2 => {
                self.cursor.take(4 + 4 + 4)?;
                self.longs()?;
                self.cursor.i64()?;
                self.stream(0)
            }
            3 | 4 => {
                self.cursor.take(4 + 8)?;
                self.stream(0)?;
                self.cursor.block().map(|_| ())
            }
            _ => self.cursor.damaged(1, MetadataDamage::Unknown(kind.into())),
        }
    }

    fn stream(&mut self, depth: usize) -> Read {
        let kind = self.cursor.u8()?;
        if depth >= DEPTH_MAX {
            return self.cursor.damaged(1, MetadataDamage::Depth);
        }
        match kind {
            0 | 16 => Ok(()),
            1 => {
                self.cursor.text()?;
                self.summary.inline_bytes += self.cursor.block()?.len() as u64;
                Ok(())
            }
            2 => {
                let len = self.size()?;
                let (path, text) = self.path()?;
                let state = NamedState { path: NamedPath::Absolute(path), start: 0, len, merged: false };
                (self.tell)(Found::State { state, text });
                Ok(())
            }
            3 => {
                self.key_groups()?;
                self.stream(depth + 1)
            }
            6 => {
                let (path, text) = self.path()?;
                let len = self.size()?;
                let state = NamedState { path: NamedPath::Relative(path), start: 0, len, merged: false };
                (self.tell)(Found::State { state, text });
                Ok(())
            }
            15 => {
                let (start, len) = (self.number()?, self.size()?);
                self.cursor.i32()?;
                let (path, text) = self.path()?;
                self.cursor.text()?;
                let state = NamedState { path: NamedPath::Absolute(path), start, len, merged: true };
                (self.tell)(Found::State { state, text });
                Ok(())
            }
            _ => self.cursor.damaged(1, MetadataDamage::Unknown(kind.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Files that Flink has written (`tests/flink/job/src/esker/flink/MetadataSamples.java`), and what its own reader says of
    /// them (`MetadataNames.java` there).
    macro_rules! samples {
        ($($name:literal)+) => {
            [$(($name, include_bytes!(concat!("../../tests/data/flink-metadata/", $name, ".bin")).as_slice(),
                include_str!(concat!("../../tests/data/flink-metadata/", $name, ".txt")))),+]
        };
    }

    const SAMPLES: [(&str, &[u8], &str); 7] = samples! {
        "flink-1.13-v3" "flink-1.20-v3" "flink-1.20-v4" "flink-2.3-v3" "flink-2.3-v4" "flink-2.3-v5" "flink-2.3-v6"
    };

    fn names(bytes: &[u8]) -> (Result<MetadataSummary, MetadataError>, Vec<String>) {
        let mut names = vec![];
        let read = read_metadata(bytes, &mut |named| {
            let (kind, path) = match &named.path {
                NamedPath::Absolute(path) => ("absolute", path),
                NamedPath::Relative(path) => ("relative", path),
            };
            names.push(format!("{kind}\t{path}\t{}\t{}", named.start, named.len));
        });
        (read, names)
    }

    #[test]
    fn every_version_names_what_the_reader_of_flink_finds_in_it() {
        for (sample, bytes, expected) in SAMPLES {
            let (read, mut names) = names(bytes);
            names.sort_unstable();
            names.dedup();

            let summary = read.unwrap_or_else(|error| panic!("{sample}: {error}"));
            let version = sample.rsplit_once('v').unwrap().1.parse::<u32>().unwrap();
            assert_eq!((summary.version, summary.checkpoint), (version, 7), "{sample}");
            let told: Vec<String> = [format!("checkpoint\t{}", summary.checkpoint)].into_iter().chain(names).collect();
            assert_eq!(told, expected.lines().collect::<Vec<_>>(), "{sample}");
        }
    }

    #[test]
    fn bytes_of_state_in_the_file_itself_are_counted() {
        let (read, _) = names(SAMPLES[6].1);

        let summary = read.unwrap();
        assert_eq!(summary.operators, 2);
        // A master hook of 16; a coordinator of 3; three times 30 in shared state and twice 2 of changes.
        assert_eq!(summary.inline_bytes, 16 + 3 + 3 * 30 + 2 * 2);
    }

    #[test]
    fn a_file_that_is_torn_anywhere_is_damaged_where_it_ends() {
        for (sample, bytes, _) in SAMPLES {
            for len in 0..bytes.len() {
                let (read, _) = names(&bytes[..len]);

                match read {
                    Err(MetadataError::Damaged { at, len: of, why: MetadataDamage::Ends { needed, left }, .. }) => {
                        assert!(of == len && at + left == len && needed > left as u64, "{sample}, {len}");
                    }
                    other => panic!("{sample}, {len} bytes: {other:?}"),
                }
            }
        }
    }

    #[test]
    fn what_is_not_of_flink_or_of_another_version_is_told_from_what_is_damaged() {
        let read = |bytes: &[u8]| names(bytes).0.unwrap_err();

        assert_eq!(read(b"PAR1"), MetadataError::NotMetadata);
        assert_eq!(read(b"P"), MetadataError::NotMetadata);
        assert_eq!(read(&[0x49, 0x60, 0x67, 0x2d, 0, 0, 0, 2]), MetadataError::Version(2));
        assert_eq!(read(&[0x49, 0x60, 0x67, 0x2d, 0, 0, 0, 7]), MetadataError::Version(7));
        let text = read(&SAMPLES[6].1[..70]).to_string();
        assert!(text.starts_with("is damaged at byte ") && text.contains(" of 70, in "), "{text}");
    }

    #[test]
    fn handles_inside_of_handles_have_an_end() {
        let mut bytes = SAMPLES[3].1[..8].to_vec();
        // Checkpoint 7, no master, an operator whose coordinator is a state of key groups in one in one in one.
        bytes.extend_from_slice(&7_i64.to_be_bytes());
        bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 1]);
        bytes.extend_from_slice(&[0; 24]);
        for _ in 0..1_000_000 {
            bytes.extend_from_slice(&[3, 0, 0, 0, 0, 0, 0, 0, 0]);
        }

        assert!(matches!(names(&bytes).0, Err(MetadataError::Damaged { why: MetadataDamage::Depth, .. })));
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_are_reading_them_ends(bytes in vec(any::<u8>(), 0..400), version in 3_u8..=6) {
            let mut file = vec![0x49, 0x60, 0x67, 0x2d, 0, 0, 0, version];
            file.extend_from_slice(&bytes);

            let (_, names) = names(&file);

            prop_assert!(names.len() <= file.len() / 11);
        }

        #[test]
        fn files_with_changed_bytes_are_read_or_refused(
            sample in 0_usize..7,
            changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let mut file = SAMPLES[sample].1.to_vec();
            for (place, byte) in changes {
                let place = place.index(file.len());
                file[place] = byte;
            }

            let (read, names) = names(&file);

            prop_assert!(names.len() <= file.len() / 11);
            if let Ok(summary) = read {
                prop_assert!(summary.inline_bytes <= file.len() as u64);
            }
        }
    }
}
