//! Reads the bytes of one log file up to where they stop making sense.
//!
//! Tells the harmless end of a crash from damage: a tail that was never durable may be cut, a frame
//! that once was durable may not.

use std::sync::Arc;

use slatedb::wal::WalError;

use super::format::{FRAME_HEADER_LEN, LOG_FILE_HEADER_LEN, LogFileHeader, LogFrame, MalformedLog};

/// The contents of a log file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LogScan {
    /// The id of the last good frame.
    pub last_id: Option<u64>,
    /// The last frame that the good ones know to be durable, zero without any.
    pub durable_id: u64,
    /// Bytes up to the end of the last good frame.
    pub good_len: usize,
    /// The end behind the good frames.
    pub end: ScanEnd,
}

/// The end of a log file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ScanEnd {
    /// With its last frame.
    Clean,
    /// With bytes that were being written when the writer died.
    Torn(MalformedLog),
    /// With a bad frame that was durable, because a later frame says so.
    Damaged(MalformedLog),
}

/// Walks the frames of a log file whose name says `expected`.
///
/// A log file whose header was torn has a good length of zero.
///
/// # Errors
/// The header is whole, but not what `expected` says or not of a version known here.
pub(super) fn scan(bytes: &[u8], expected: LogFileHeader) -> Result<LogScan, MalformedLog> {
    let mut scan = LogScan { last_id: None, durable_id: 0, good_len: 0, end: ScanEnd::Clean };
    match LogFileHeader::decode(bytes) {
        Ok(header) if header == expected => scan.good_len = LOG_FILE_HEADER_LEN,
        Ok(_) => return Err(MalformedLog::Field("epoch or id in a log file header")),
        Err(error @ (MalformedLog::Short(_) | MalformedLog::Checksum(_))) => {
            scan.end = judge_tail(bytes, expected.epoch, expected.first_id, error);
            return Ok(scan);
        }
        Err(error) => return Err(error),
    }
    while scan.good_len < bytes.len() {
        let next_id_min = scan.last_id.map_or(expected.first_id, |id| id + 1);
        match next_frame(&bytes[scan.good_len..], expected.epoch, next_id_min) {
            Ok(frame) => {
                scan.good_len += frame.len;
                scan.last_id = Some(frame.wal_id);
                scan.durable_id = scan.durable_id.max(frame.durable_id);
            }
            Err(error) => {
                let tail = &bytes[scan.good_len..];
                scan.end = judge_tail(tail, expected.epoch, next_id_min, error);
                break;
            }
        }
    }
    Ok(scan)
}

/// Where the frames begin that were not known to be durable, in the good bytes of a log file: frame `durable_id` was. If the
/// first frame was not, the header may not be either.
///
/// # Errors
/// The fault in the frames, although the bytes were good.
pub(super) fn uncertain_from(bytes: &[u8], durable_id: u64) -> Result<usize, MalformedLog> {
    let mut at = LOG_FILE_HEADER_LEN;
    while at < bytes.len() {
        let frame = LogFrame::decode(&bytes[at..])?;
        if frame.wal_id > durable_id {
            return Ok(if at == LOG_FILE_HEADER_LEN { 0 } else { at });
        }
        at += frame.len;
    }
    Ok(bytes.len())
}

fn next_frame(bytes: &[u8], epoch: u64, id_min: u64) -> Result<LogFrame, MalformedLog> {
    let frame = LogFrame::decode(bytes)?;
    if frame.epoch != epoch {
        return Err(MalformedLog::Field("epoch of a frame"));
    }
    if frame.wal_id < id_min || frame.wal_id == u64::MAX {
        return Err(MalformedLog::Field("id of a frame"));
    }
    Ok(frame)
}

/// Decides whether `tail`, which should begin with frame `id`, was ever durable: if so, a later
/// frame knows.
fn judge_tail(tail: &[u8], epoch: u64, id: u64, error: MalformedLog) -> ScanEnd {
    let knows =
        |frame: &LogFrame| frame.epoch == epoch && frame.wal_id > id && (id..frame.wal_id).contains(&frame.durable_id);
    // The length of the bad frame may be bad too, so the next may begin anywhere.
    let was_durable = (1..tail.len().saturating_sub(FRAME_HEADER_LEN)).any(|at| {
        let rest = &tail[at..];
        LogFrame::peek(rest).is_ok_and(|frame| knows(&frame)) && LogFrame::decode(rest).is_ok()
    });
    if was_durable { ScanEnd::Damaged(error) } else { ScanEnd::Torn(error) }
}

/// The error of a log file that is not only torn.
pub(super) fn damaged(log_file: LogFileHeader, source: MalformedLog) -> WalError {
    WalError::DataError(Arc::new(DamagedLogFile { name: log_file.file_name(), source }))
}

#[derive(Debug, thiserror::Error)]
#[error("file {name} of the catalog log is damaged")]
struct DamagedLogFile {
    name: String,
    #[source]
    source: MalformedLog,
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use slatedb::{RowEntry, ValueDeletable};

    use super::super::format::FrameBuilder;
    use super::*;

    const HEADER: LogFileHeader = LogFileHeader { epoch: 2, first_id: 10, number: 0 };

    fn frame(wal_id: u64, durable_id: u64) -> Vec<u8> {
        let mut builder = FrameBuilder::new(Vec::new());
        builder.push(&RowEntry {
            key: Bytes::from("key"),
            value: ValueDeletable::Value(Bytes::from(vec![0xaa; 50])),
            seq: wal_id,
            create_ts: None,
            expire_ts: None,
        });
        builder.seal(wal_id, HEADER.epoch, durable_id).to_vec()
    }

    fn log_file(frames: &[Vec<u8>]) -> Vec<u8> {
        [HEADER.encode().to_vec(), frames.concat()].concat()
    }

    #[test]
    fn a_whole_log_file_is_clean() {
        let bytes = log_file(&[frame(10, 9), frame(11, 10), frame(15, 11)]);

        let scan = scan(&bytes, HEADER).unwrap();

        assert_eq!(scan.last_id, Some(15));
        assert_eq!((scan.good_len, scan.end), (bytes.len(), ScanEnd::Clean));
    }

    #[test]
    fn what_no_frame_knows_to_be_durable_is_uncertain() {
        let frames = [frame(10, 9), frame(11, 10), frame(12, 10)];
        let bytes = log_file(&frames);
        let scan = scan(&bytes, HEADER).unwrap();
        assert_eq!(scan.durable_id, 10);

        assert_eq!(uncertain_from(&bytes, scan.durable_id), Ok(LOG_FILE_HEADER_LEN + frames[0].len()));
        assert_eq!(uncertain_from(&bytes, 12), Ok(bytes.len()));
        assert_eq!(uncertain_from(&bytes, 9), Ok(0), "a header is as durable as the first frame");
        assert_eq!(uncertain_from(&log_file(&[]), 9), Ok(LOG_FILE_HEADER_LEN));
    }

    #[test]
    fn zeros_garbage_and_half_a_frame_are_torn() {
        let good = log_file(&[frame(10, 9)]);
        for tail in [vec![0; 4096], vec![0x5a; 700], frame(11, 10)[..40].to_vec(), vec![1]] {
            let scan = scan(&[good.clone(), tail].concat(), HEADER).unwrap();

            assert_eq!((scan.last_id, scan.good_len), (Some(10), good.len()));
            assert!(matches!(scan.end, ScanEnd::Torn(_)), "{:?}", scan.end);
        }
    }

    #[test]
    fn a_torn_header_leaves_nothing_unless_a_frame_was_durable() {
        let short = HEADER.encode()[..20].to_vec();
        let zeros = vec![0; 4096];
        let mut flipped = log_file(&[frame(10, 9)]);
        flipped[20] ^= 1;
        for bytes in [vec![], short, zeros, flipped] {
            let scan = scan(&bytes, HEADER).unwrap();

            assert_eq!((scan.last_id, scan.good_len), (None, 0));
            assert!(matches!(scan.end, ScanEnd::Torn(_)), "{:?}", scan.end);
        }

        let mut durable = log_file(&[frame(10, 9), frame(11, 10)]);
        durable[20] ^= 1;
        let scan = scan(&durable, HEADER).unwrap();
        assert!(matches!(scan.end, ScanEnd::Damaged(_)), "{:?}", scan.end);
    }

    #[test]
    fn another_version_or_name_is_refused() {
        let mut bytes = log_file(&[]);
        bytes[8] = 2;
        let crc = super::super::format::crc32c(&[&bytes[..32]]);
        bytes[32..36].copy_from_slice(&crc.to_le_bytes());
        let other_name = LogFileHeader { epoch: 3, ..HEADER };

        assert_eq!(scan(&bytes, HEADER), Err(MalformedLog::Version(2)));
        assert!(scan(&log_file(&[]), other_name).is_err());
    }

    #[test]
    fn frames_of_one_sync_may_be_torn_in_any_order() {
        let mut bytes = log_file(&[frame(10, 9), frame(11, 10), frame(12, 10)]);
        let second = LOG_FILE_HEADER_LEN + frame(10, 9).len();
        bytes[second + 50] ^= 1;

        let scan = scan(&bytes, HEADER).unwrap();

        assert!(matches!(scan.end, ScanEnd::Torn(_)), "{:?}", scan.end);
    }

    #[test]
    fn a_bad_frame_that_was_durable_is_damage() {
        for field in [0, 5, 12, 50] {
            let mut bytes = log_file(&[frame(10, 9), frame(11, 10), frame(12, 11)]);
            let second = LOG_FILE_HEADER_LEN + frame(10, 9).len();
            bytes[second + field] ^= 1;

            let scan = scan(&bytes, HEADER).unwrap();

            assert_eq!(scan.last_id, Some(10));
            assert!(matches!(scan.end, ScanEnd::Damaged(_)), "{:?}", scan.end);
        }
    }

    #[test]
    fn a_frame_of_another_epoch_or_an_older_id_ends_the_log_file() {
        let mut other = FrameBuilder::new(Vec::new());
        other.push(&RowEntry {
            key: Bytes::from("k"),
            value: ValueDeletable::Tombstone,
            seq: 1,
            create_ts: None,
            expire_ts: None,
        });
        for tail in [other.seal(11, 1, 10).to_vec(), frame(10, 9)] {
            let scan = scan(&log_file(&[frame(10, 9), tail]), HEADER).unwrap();

            assert_eq!(scan.last_id, Some(10));
            assert!(matches!(scan.end, ScanEnd::Torn(MalformedLog::Field(_))));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_scan_panic(tail in vec(any::<u8>(), 0..600)) {
            let bytes = [log_file(&[frame(10, 9)]), tail].concat();

            let scan = scan(&bytes, HEADER).unwrap();

            prop_assert!(scan.good_len <= bytes.len());
        }
    }
}
