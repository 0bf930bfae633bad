//! What stands under a key of a bucket, as it is kept in memory.
//!
//! Nearly every key has one version, of one segment or a few, and that is kept as some dozen bytes. What is on its way,
//! or large, is kept as it is.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::catalog::command::StoreToken;
use crate::catalog::record::ObjectRecord;
use crate::model::{Millis, ObjectChecksum, ObjectHead, ObjectHeaders, SegmentId};

/// An object of so many segments is walked from its beginning; with more, where each ends is remembered.
pub(super) const SEGMENTS_FEW: usize = 64;

/// What a key takes beside its text and its version.
const ENTRY_BYTES: usize = 64;
/// What most objects need, packed, beside their segments.
const USUAL_BYTES: usize = 64;
/// What a version takes that is kept as it is, beside its segments and texts.
const VERSION_BYTES: usize = 512;

/// The versions under one key.
#[derive(Debug)]
pub(super) enum Slot {
    /// One that has arrived, of a few segments: a [`PackedObject`] in postcard's encoding.
    Packed(Box<[u8]>),
    /// Newest first; at least one. In a box, which is a third of a vector's size: few objects have more than one version.
    #[expect(clippy::box_collection, reason = "a slot is as small as can be")]
    Versions(Box<Vec<Version>>),
}

/// One version of an object; those on their way name the store that brings them.
#[derive(Debug, Clone)]
pub(super) struct Version {
    /// Shared with those who read it.
    pub(super) record: Arc<ObjectRecord>,
    /// Where its segments end, once a reader has asked.
    pub(super) ends: OnceLock<Arc<[u64]>>,
    pub(super) on_its_way: Option<StoreToken>,
}

/// What a listing says of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Brief {
    pub(super) len: u64,
    pub(super) etag: String,
    pub(super) modified: Millis,
    pub(super) class: Option<String>,
    pub(super) checksum: Option<ChecksumKind>,
}

/// A checksum of an object without its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChecksumKind {
    /// Its name, as S3 writes it.
    pub algorithm: Cow<'static, str>,
    /// Whether it is a checksum of checksums.
    pub composite: bool,
}

impl ChecksumKind {
    fn of(checksum: &ObjectChecksum) -> Self {
        Self { algorithm: checksum.algorithm.clone().into(), composite: checksum.composite }
    }
}

impl Version {
    pub(super) fn new(record: Arc<ObjectRecord>, on_its_way: Option<StoreToken>) -> Self {
        Self { record, ends: OnceLock::new(), on_its_way }
    }
}

impl Slot {
    /// Versions in the smallest form; `None` for no versions.
    pub(super) fn of(versions: Vec<Version>) -> Option<Self> {
        match &versions[..] {
            [] => None,
            [Version { record, on_its_way: None, .. }] if record.segments.len() <= SEGMENTS_FEW => {
                Some(Self::Packed(pack(record)))
            }
            _ => Some(Self::Versions(Box::new(versions))),
        }
    }

    /// All versions, newest first.
    pub(super) fn versions(&self) -> Vec<Version> {
        match self {
            Self::Packed(bytes) => vec![Version::new(Arc::new(unpack(bytes)), None)],
            Self::Versions(versions) => versions.to_vec(),
        }
    }

    /// The record of the version that counts: the newest that has arrived.
    pub(super) fn current(&self) -> Option<Arc<ObjectRecord>> {
        match self {
            Self::Packed(bytes) => Some(Arc::new(unpack(bytes))),
            Self::Versions(_) => self.arrived().map(|version| Arc::clone(&version.record)),
        }
    }

    /// The same, if its versions are kept as they are.
    pub(super) fn arrived(&self) -> Option<&Version> {
        match self {
            Self::Packed(_) => None,
            Self::Versions(versions) => versions.iter().find(|version| version.on_its_way.is_none()),
        }
    }

    /// What a listing says of the version that counts.
    pub(super) fn brief(&self) -> Option<Brief> {
        match self {
            Self::Packed(bytes) => {
                let packed = read(bytes);
                let class = packed.more.and_then(|more| more.class).map(str::to_owned);
                let checksum = packed.checksum.as_ref().map(Checksum::kind);
                Some(Brief { len: packed.len, etag: packed.etag.text(), modified: packed.modified, class, checksum })
            }
            Self::Versions(_) => self.arrived().map(|version| Brief {
                len: version.record.head.len,
                etag: version.record.head.etag.clone(),
                modified: version.record.head.modified,
                class: version.record.head.headers.storage_class.clone(),
                checksum: version.record.head.checksum.as_ref().map(ChecksumKind::of),
            }),
        }
    }

    /// The entity tag of the newest version, and whether it is on its way.
    pub(super) fn newest(&self) -> Option<(String, bool)> {
        match self {
            Self::Packed(bytes) => Some((read(bytes).etag.text(), false)),
            Self::Versions(versions) => {
                versions.first().map(|newest| (newest.record.head.etag.clone(), newest.on_its_way.is_some()))
            }
        }
    }

    /// How many versions there are.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Packed(_) => 1,
            Self::Versions(versions) => versions.len(),
        }
    }

    /// Tells each segment of every version, as often as one names it.
    pub(super) fn each_segment(&self, mut tell: impl FnMut(SegmentId)) {
        match self {
            // They come first, and the rest is not read.
            Self::Packed(bytes) => {
                let (ids, _) = postcard::take_from_bytes(bytes).expect("it was encoded by this process");
                segments(ids).for_each(tell);
            }
            Self::Versions(versions) => {
                versions.iter().flat_map(|version| &version.record.segments).for_each(|id| tell(*id));
            }
        }
    }

    /// Bytes in memory, about, with those of its key.
    pub(super) fn weight(&self, key: &str) -> u64 {
        let of_record = |record: &ObjectRecord| {
            let ObjectHeaders { metadata, tags, .. } = &record.head.headers;
            let headers: usize = metadata.iter().chain(tags).map(|(name, value)| 48 + name.len() + value.len()).sum();
            VERSION_BYTES + 24 * record.segments.len() + 8 * record.head.part_lens.len() + headers
        };
        let versions: usize = match self {
            Self::Packed(bytes) => bytes.len().next_multiple_of(16),
            Self::Versions(versions) => versions.iter().map(|version| of_record(&version.record)).sum(),
        };
        (ENTRY_BYTES + key.len() + versions) as u64
    }
}

/// An object's record without what most have in common.
#[derive(Debug, Serialize, Deserialize)]
struct PackedObject<'a> {
    /// 16 bytes each. They are read alone, too.
    segments: &'a [u8],
    len: u64,
    #[serde(borrow)]
    etag: Etag<'a>,
    modified: Millis,
    headers: Headers<'a>,
    checksum: Option<Checksum<'a>>,
    part_lens: Vec<u64>,
    upload: Option<&'a str>,
    #[serde(borrow)]
    more: Option<More<'a>>,
}

/// What few objects have.
#[derive(Debug, Default, Serialize, Deserialize)]
struct More<'a> {
    class: Option<&'a str>,
    /// Checksums of parts.
    #[serde(borrow)]
    parts: Vec<&'a str>,
    #[serde(borrow)]
    tags: Vec<(&'a str, &'a str)>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Etag<'a> {
    Md5([u8; 16]),
    /// The MD5 of so many parts' MD5s.
    OfParts([u8; 16], u32),
    Text(&'a str),
}

#[derive(Debug, Serialize, Deserialize)]
enum Headers<'a> {
    Nothing,
    /// One of [`CONTENT_TYPES`], and nothing else.
    Common(u8),
    /// All of them in postcard's encoding.
    Whole(&'a [u8]),
}

/// Content types that clients send without being told. In memory only: the order means nothing on storage.
const CONTENT_TYPES: [&str; 4] =
    ["application/octet-stream", "binary/octet-stream", "application/x-www-form-urlencoded", "text/plain"];
const ALGORITHMS: [&str; 10] =
    ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256", "SHA512", "MD5", "XXHASH64", "XXHASH3", "XXHASH128"];

#[derive(Debug, Serialize, Deserialize)]
enum Checksum<'a> {
    /// One of [`ALGORITHMS`], the value, and of how many parts' checksums it is one.
    Raw(u8, #[serde(borrow)] Cow<'a, [u8]>, Option<u32>),
    Text(&'a str, &'a str, bool),
    /// That of [`ObjectChecksum::DEFAULT_ALGORITHM`], which every object has that came without one.
    Default([u8; 8]),
}

fn pack(record: &ObjectRecord) -> Box<[u8]> {
    let head = &record.head;
    let ids: Vec<u8> = record.segments.iter().flat_map(|id| id.0.to_be_bytes()).collect();
    let whole: Vec<u8>;
    let content_type = head.headers.content_type.as_deref();
    let common = content_type.and_then(|wanted| CONTENT_TYPES.iter().position(|known| *known == wanted));
    let headers = match common.and_then(|common| u8::try_from(common).ok()) {
        Some(common) if has_only_a_type(&head.headers) => Headers::Common(common),
        None if content_type.is_none() && has_only_a_type(&head.headers) => Headers::Nothing,
        _ => {
            whole = postcard::to_stdvec(&head.headers).expect("plain values always encode");
            Headers::Whole(&whole)
        }
    };
    let packed = PackedObject {
        segments: &ids,
        len: head.len,
        etag: Etag::of(&head.etag),
        modified: head.modified,
        headers,
        checksum: head.checksum.as_ref().map(Checksum::of),
        part_lens: head.part_lens.clone(),
        upload: record.upload.as_deref(),
        more: more(record),
    };
    let bytes = Vec::with_capacity(USUAL_BYTES + ids.len());
    postcard::to_extend(&packed, bytes).expect("plain values always encode").into_boxed_slice()
}

fn more(record: &ObjectRecord) -> Option<More<'_>> {
    let ObjectHeaders { storage_class, tags, .. } = &record.head.headers;
    let parts = record.head.checksum.as_ref().map(|checksum| &checksum.parts[..]).unwrap_or_default();
    (storage_class.is_some() || !parts.is_empty() || !tags.is_empty()).then(|| More {
        class: storage_class.as_deref(),
        parts: parts.iter().map(String::as_str).collect(),
        tags: tags.iter().map(|(key, value)| (&**key, &**value)).collect(),
    })
}

/// The storage class and the tags are kept elsewhere than the other headers.
fn has_only_a_type(headers: &ObjectHeaders) -> bool {
    let ObjectHeaders {
        content_type: _,
        cache_control: None,
        content_disposition: None,
        content_encoding: None,
        content_language: None,
        expires: None,
        metadata,
        storage_class: _,
        tags: _,
    } = headers
    else {
        return false;
    };
    metadata.is_empty()
}

fn read(bytes: &[u8]) -> PackedObject<'_> {
    postcard::from_bytes(bytes).expect("it was encoded by this process")
}

fn segments(bytes: &[u8]) -> impl Iterator<Item = SegmentId> + '_ {
    let (ids, _) = bytes.as_chunks::<16>();
    ids.iter().map(|id| SegmentId(u128::from_be_bytes(*id)))
}

fn unpack(bytes: &[u8]) -> ObjectRecord {
    let packed = read(bytes);
    let More { class, parts, tags } = packed.more.unwrap_or_default();
    let mut headers = packed.headers.unpack();
    headers.storage_class = class.map(str::to_owned);
    headers.tags = tags.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let mut checksum = packed.checksum.as_ref().map(Checksum::unpack);
    if let Some(checksum) = &mut checksum {
        checksum.parts = parts.into_iter().map(str::to_owned).collect();
    }
    ObjectRecord {
        segments: segments(packed.segments).collect(),
        head: ObjectHead {
            len: packed.len,
            etag: packed.etag.text(),
            modified: packed.modified,
            headers,
            checksum,
            part_lens: packed.part_lens,
        },
        upload: packed.upload.map(str::to_owned),
    }
}

impl<'a> Etag<'a> {
    fn of(text: &'a str) -> Self {
        let md5 = |hex: &str| {
            let lower = hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            let mut md5 = [0; 16];
            (lower && hex::decode_to_slice(hex, &mut md5).is_ok()).then_some(md5)
        };
        let of_parts = |text: &str| {
            let (hex, count) = text.split_once('-')?;
            let parts: u32 = count.parse().ok()?;
            (parts.to_string() == count).then_some((md5(hex)?, parts))
        };
        match (md5(text), of_parts(text)) {
            (Some(md5), _) => Self::Md5(md5),
            (None, Some((md5, parts))) => Self::OfParts(md5, parts),
            (None, None) => Self::Text(text),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Md5(md5) => hex::encode(md5),
            Self::OfParts(md5, parts) => format!("{}-{parts}", hex::encode(md5)),
            Self::Text(text) => (*text).to_owned(),
        }
    }
}

impl Headers<'_> {
    fn unpack(&self) -> ObjectHeaders {
        match self {
            Self::Nothing => ObjectHeaders::default(),
            Self::Common(common) => {
                let content_type = CONTENT_TYPES.get(usize::from(*common)).map(|known| (*known).to_owned());
                ObjectHeaders { content_type, ..ObjectHeaders::default() }
            }
            Self::Whole(bytes) => postcard::from_bytes(bytes).expect("it was encoded by this process"),
        }
    }
}

impl<'a> Checksum<'a> {
    fn of(checksum: &'a ObjectChecksum) -> Self {
        let ObjectChecksum { algorithm, value, composite, parts: _ } = checksum;
        let raw = || {
            let algorithm = ALGORITHMS.iter().position(|known| known == algorithm)?;
            let (base64, parts) = match value.split_once('-') {
                Some((base64, count)) => (base64, Some(count.parse().ok()?)),
                None => (&value[..], None),
            };
            let raw = Self::Raw(u8::try_from(algorithm).ok()?, BASE64.decode(base64).ok()?.into(), parts);
            Some(raw).filter(|_| parts.is_some() == *composite)
        };
        let default = || {
            let raw = BASE64.decode(value).ok().filter(|_| algorithm == ObjectChecksum::DEFAULT_ALGORITHM)?;
            Some(Self::Default(raw.try_into().ok()?))
        };
        // What does not come out as it went in is kept as it is.
        let same = |raw: &Self| {
            let unpacked = raw.unpack();
            (&unpacked.algorithm, &unpacked.value, unpacked.composite) == (algorithm, value, *composite)
        };
        default().or_else(raw).filter(same).unwrap_or(Self::Text(algorithm, value, *composite))
    }

    /// Its algorithm, and whether it is composite.
    fn kind(&self) -> ChecksumKind {
        let (algorithm, composite) = match self {
            Self::Raw(algorithm, _, parts) => {
                (ALGORITHMS.get(usize::from(*algorithm)).copied().unwrap_or_default().into(), parts.is_some())
            }
            Self::Default(_) => (ObjectChecksum::DEFAULT_ALGORITHM.into(), false),
            Self::Text(algorithm, _, composite) => ((*algorithm).to_owned().into(), *composite),
        };
        ChecksumKind { algorithm, composite }
    }

    fn unpack(&self) -> ObjectChecksum {
        match self {
            Self::Raw(algorithm, raw, parts) => {
                let parts_text = parts.map_or_else(String::new, |parts: u32| format!("-{parts}"));
                ObjectChecksum {
                    algorithm: ALGORITHMS.get(usize::from(*algorithm)).map_or_else(String::new, |&known| known.into()),
                    value: BASE64.encode(raw) + &parts_text,
                    composite: parts.is_some(),
                    parts: vec![],
                }
            }
            Self::Default(raw) => ObjectChecksum {
                algorithm: ObjectChecksum::DEFAULT_ALGORITHM.to_owned(),
                value: BASE64.encode(raw),
                composite: false,
                parts: vec![],
            },
            Self::Text(algorithm, value, composite) => {
                let (algorithm, value) = ((*algorithm).to_owned(), (*value).to_owned());
                ObjectChecksum { algorithm, value, composite: *composite, parts: vec![] }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn any_headers() -> impl Strategy<Value = ObjectHeaders> {
        let content_type = prop_oneof![Just(None), Just(Some("text/plain".into())), "[a-z/]{0,9}".prop_map(Some)];
        let class = proptest::option::of("[A-Z_]{0,9}");
        let pairs = || vec(("[a-z]{0,3}", "\\PC{0,5}"), 0..3);
        (content_type, proptest::option::of("[a-z]{0,5}"), pairs(), class, pairs()).prop_map(
            |(content_type, cache_control, metadata, storage_class, tags)| ObjectHeaders {
                content_type,
                cache_control,
                metadata,
                storage_class,
                tags,
                ..ObjectHeaders::default()
            },
        )
    }

    fn any_checksum() -> impl Strategy<Value = ObjectChecksum> {
        let algorithm =
            prop_oneof![Just("CRC32"), Just("CRC64NVME"), Just("SHA256"), Just("MD2")].prop_map(str::to_owned);
        let value = prop_oneof![
            vec(any::<u8>(), 0..33).prop_map(|raw| BASE64.encode(raw)),
            any::<[u8; 8]>().prop_map(|raw| BASE64.encode(raw)),
            (vec(any::<u8>(), 0..9), 0_u32..20_000).prop_map(|(raw, parts)| format!("{}-{parts}", BASE64.encode(raw))),
            "[A-Za-z0-9+/=-]{0,12}",
        ];
        let parts = vec("[A-Za-z0-9+/=]{0,8}", 0..3);
        (algorithm, value, any::<bool>(), parts).prop_map(|(algorithm, value, composite, parts)| ObjectChecksum {
            algorithm,
            value,
            composite,
            parts,
        })
    }

    fn any_record() -> impl Strategy<Value = ObjectRecord> {
        let etag = prop_oneof!["[0-9a-f]{32}", "[0-9a-fA-F]{31,33}", "[0-9a-f]{32}-0?[0-9]{1,5}", "\\PC{0,40}"];
        let what = (vec(any::<u128>().prop_map(SegmentId), 0..70), any::<u64>(), etag, any::<u64>().prop_map(Millis));
        let more = (any_headers(), proptest::option::of(any_checksum()), vec(any::<u64>(), 0..5));
        (what, more, proptest::option::of("[A-Z0-9]{0,26}")).prop_map(
            |((segments, len, etag, modified), (headers, checksum, part_lens), upload)| {
                let head = ObjectHead { len, etag, modified, headers, checksum, part_lens };
                ObjectRecord { segments, head, upload }
            },
        )
    }

    proptest! {
        #[test]
        fn an_object_comes_out_as_it_went_in(record in any_record()) {
            let slot = Slot::of(vec![Version::new(Arc::new(record.clone()), None)]).unwrap();

            let mut segments = vec![];
            slot.each_segment(|id| segments.push(id));

            prop_assert_eq!(matches!(slot, Slot::Packed(_)), record.segments.len() <= SEGMENTS_FEW);
            prop_assert_eq!(&segments, &record.segments);
            prop_assert_eq!(slot.newest(), Some((record.head.etag.clone(), false)));
            let ObjectHead { len, etag, modified, headers, checksum, .. } = record.head.clone();
            let checksum = checksum.as_ref().map(ChecksumKind::of);
            let brief = Brief { len, etag, modified, class: headers.storage_class, checksum };
            prop_assert_eq!(slot.brief(), Some(brief));
            prop_assert_eq!(&*slot.current().unwrap(), &record);
            prop_assert_eq!(&*slot.versions()[0].record, &record);
        }
    }

    #[test]
    fn what_a_usual_object_takes() {
        let with = |algorithm: &str, value: &str| {
            let (algorithm, value) = (algorithm.to_owned(), value.to_owned());
            Some(ObjectChecksum { algorithm, value, composite: false, parts: vec![] })
        };
        let head = ObjectHead {
            len: 100,
            etag: "0cc175b9c0f1b6a831c399e269772661".into(),
            modified: Millis(1_790_000_000_000),
            headers: ObjectHeaders {
                content_type: Some("application/octet-stream".into()),
                ..ObjectHeaders::default()
            },
            checksum: with("CRC32", "AAAAAA=="),
            part_lens: vec![],
        };
        let record = ObjectRecord { segments: vec![SegmentId(u128::MAX)], head, upload: None };

        let len_with = |checksum: Option<ObjectChecksum>| {
            pack(&ObjectRecord { head: ObjectHead { checksum, ..record.head.clone() }, ..record.clone() }).len()
        };

        assert!(pack(&record).len() <= 64, "{} bytes", pack(&record).len());
        // The checksum that every object has, in 8 bytes and one that says so.
        assert_eq!(len_with(with("CRC64NVME", "rosUhgp5mIg=")) - len_with(None), 9);
        assert_eq!(std::mem::size_of::<Slot>(), 16);
    }
}
