//! Listings: both versions, and that of versions, of which each object has one.
//!
//! A page is cut by the catalog. Names go out as they are, or percent-encoded when the client asks for that, because
//! XML cannot hold every character of a key.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::dto::{
    ChecksumAlgorithm, CommonPrefix, EncodingType, ListObjectVersionsInput, ListObjectVersionsOutput, ListObjectsInput,
    ListObjectsOutput, ListObjectsV2Input, ListObjectsV2Output, Object, ObjectStorageClass, ObjectVersion,
    ObjectVersionStorageClass, Owner,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result};

use super::S3Door;
use super::conditions::{etag, timestamp};
use super::errors::{OrS3, refuse};
use super::headers::STANDARD;
use super::objects::checksum_type;
use super::surface::OWNER;
use crate::engine::{ChecksumKind, ListPage, ListQuery, Listed};
use crate::model::Millis;

/// Entries of one page at most, as in S3.
pub(super) const PAGE_ENTRIES_MAX: i32 = 1000;
/// Begins every continuation token; a token of another kind would begin otherwise.
const TOKEN_VERSION: &str = "1:";
/// Everything but what RFC 3986 calls unreserved, and the slash.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// The owner of everything.
pub(super) fn owner() -> Owner {
    Owner { display_name: Some(OWNER.to_owned()), id: Some(OWNER.to_owned()) }
}

/// The encoding of names in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Plain,
    Url,
}

impl Encoding {
    /// # Errors
    /// `InvalidArgument` for an encoding that S3 does not know.
    pub(super) fn asked(asked: Option<&EncodingType>) -> S3Result<Self> {
        match asked.map(EncodingType::as_str) {
            None | Some("") => Ok(Self::Plain),
            Some(EncodingType::URL) => Ok(Self::Url),
            Some(other) => {
                let message = format!("encoding-type must be url, is {other:?}");
                Err(refuse(S3ErrorCode::InvalidArgument, message))
            }
        }
    }

    /// `text` as it goes out.
    pub(super) fn write(self, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Url => Cow::from(utf8_percent_encode(text, ENCODED)).into_owned(),
        }
    }

    pub(super) fn name(self) -> Option<EncodingType> {
        (self == Self::Url).then(|| EncodingType::from_static(EncodingType::URL))
    }
}

/// Number of entries that a page may have when a client asks for so many.
///
/// # Errors
/// `InvalidArgument` for a negative number.
pub(super) fn page_size(asked: Option<i32>, what: &str) -> S3Result<i32> {
    match asked.unwrap_or(PAGE_ENTRIES_MAX) {
        asked if asked < 0 => {
            Err(refuse(S3ErrorCode::InvalidArgument, format!("{what} must not be negative, is {asked}")))
        }
        asked => Ok(asked.min(PAGE_ENTRIES_MAX)),
    }
}

/// The text that a client sent. `None` also for an empty one: an empty delimiter does not delimit.
pub(super) fn given(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

/// One page, taken apart.
struct ListingPage {
    objects: Vec<ListedObject>,
    prefixes: Vec<CommonPrefix>,
    /// The last name of a page that is followed by another.
    next: Option<String>,
    truncated: bool,
}

struct ListedObject {
    /// As it goes out.
    key: String,
    len: u64,
    etag: String,
    modified: Millis,
    class: Option<String>,
    checksum: Option<ChecksumKind>,
}

/// The fields that entries of objects and of versions have in common.
macro_rules! entry {
    ($entry:ident, $class:ident, $object:expr) => {{
        let ListedObject { key, len, etag: tag, modified, class, checksum } = $object;
        let mut entry = <$entry>::default();
        entry.e_tag = Some(etag(&tag));
        entry.key = Some(key);
        entry.last_modified = Some(timestamp(modified));
        entry.size = i64::try_from(len).ok();
        entry.storage_class = Some(class.map_or_else(|| $class::from_static(STANDARD), $class::from));
        entry.checksum_type = checksum.as_ref().map(|kind| checksum_type(kind.composite));
        let algorithm = checksum.map(|kind| ChecksumAlgorithm::from(kind.algorithm.into_owned()));
        entry.checksum_algorithm = algorithm.map(|algorithm| vec![algorithm]);
        entry
    }};
}

impl ListingPage {
    fn of(page: ListPage, encoding: Encoding) -> Self {
        let next = page.entries.last().filter(|_| page.truncated).map(|last| last.name().to_owned());
        let (mut objects, mut prefixes) = (vec![], vec![]);
        for entry in page.entries {
            match entry {
                Listed::Object { key, len, etag, modified, class, checksum } => {
                    objects.push(ListedObject { key: encoding.write(&key), len, etag, modified, class, checksum });
                }
                Listed::Prefix(prefix) => prefixes.push(CommonPrefix { prefix: Some(encoding.write(&prefix)) }),
            }
        }
        Self { objects, prefixes, next, truncated: page.truncated }
    }

    fn objects(&mut self, with_owner: bool) -> Option<Vec<Object>> {
        let objects = std::mem::take(&mut self.objects)
            .into_iter()
            .map(|object| Object { owner: with_owner.then(owner), ..entry!(Object, ObjectStorageClass, object) });
        Some(objects.collect::<Vec<_>>()).filter(|objects| !objects.is_empty())
    }

    fn versions(&mut self) -> Option<Vec<ObjectVersion>> {
        let versions = std::mem::take(&mut self.objects).into_iter().map(|object| ObjectVersion {
            is_latest: Some(true),
            owner: Some(owner()),
            version_id: Some("null".to_owned()),
            ..entry!(ObjectVersion, ObjectVersionStorageClass, object)
        });
        Some(versions.collect::<Vec<_>>()).filter(|versions| !versions.is_empty())
    }

    fn prefixes(&mut self) -> Option<Vec<CommonPrefix>> {
        Some(std::mem::take(&mut self.prefixes)).filter(|prefixes| !prefixes.is_empty())
    }

    fn count(&self) -> i32 {
        i32::try_from(self.objects.len() + self.prefixes.len()).unwrap_or(PAGE_ENTRIES_MAX)
    }
}

impl S3Door {
    async fn page(&self, bucket: &str, query: ListQuery<'_>, encoding: Encoding) -> S3Result<ListingPage> {
        if query.max == 0 {
            self.check_bucket(bucket).await?;
            return Ok(ListingPage::of(ListPage::default(), encoding));
        }
        let page = match &self.siblings {
            None => {
                self.engine.check_bucket(bucket).or_s3()?;
                self.engine.list(bucket, &query).await.or_s3()?
            }
            Some(siblings) => siblings.list(&self.engine, bucket, &query).await.or_s3()?,
        };
        Ok(ListingPage::of(page, encoding))
    }

    pub(super) async fn list_objects(
        &self,
        req: S3Request<ListObjectsInput>,
    ) -> S3Result<S3Response<ListObjectsOutput>> {
        let input = req.input;
        let encoding = Encoding::asked(input.encoding_type.as_ref())?;
        let max_keys = page_size(input.max_keys, "max-keys")?;
        let prefix = input.prefix.unwrap_or_default();
        let (marker, delimiter) = (input.marker.unwrap_or_default(), given(input.delimiter));
        let query = query(&prefix, delimiter.as_deref(), &marker, max_keys);
        let mut page = self.page(&input.bucket, query, encoding).await?;
        Ok(S3Response::new(ListObjectsOutput {
            contents: page.objects(true),
            common_prefixes: page.prefixes(),
            next_marker: page.next.as_deref().map(|next| encoding.write(next)),
            is_truncated: Some(page.truncated),
            prefix: Some(encoding.write(&prefix)),
            marker: Some(encoding.write(&marker)),
            delimiter: delimiter.as_deref().map(|delimiter| encoding.write(delimiter)),
            encoding_type: encoding.name(),
            max_keys: Some(max_keys),
            name: Some(input.bucket),
            ..Default::default()
        }))
    }

    pub(super) async fn list_objects_v2(
        &self,
        req: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        let encoding = Encoding::asked(input.encoding_type.as_ref())?;
        let max_keys = page_size(input.max_keys, "max-keys")?;
        let token = given(input.continuation_token);
        let after = match &token {
            Some(token) => read_token(token)?,
            None => input.start_after.clone().unwrap_or_default(),
        };
        let (prefix, delimiter) = (input.prefix.unwrap_or_default(), given(input.delimiter));
        let query = query(&prefix, delimiter.as_deref(), &after, max_keys);
        let mut page = self.page(&input.bucket, query, encoding).await?;
        Ok(S3Response::new(ListObjectsV2Output {
            key_count: Some(page.count()),
            contents: page.objects(input.fetch_owner.unwrap_or(false)),
            common_prefixes: page.prefixes(),
            next_continuation_token: page.next.as_deref().map(write_token),
            is_truncated: Some(page.truncated),
            prefix: Some(encoding.write(&prefix)),
            start_after: given(input.start_after).map(|after| encoding.write(&after)),
            continuation_token: token,
            delimiter: delimiter.as_deref().map(|delimiter| encoding.write(delimiter)),
            encoding_type: encoding.name(),
            max_keys: Some(max_keys),
            name: Some(input.bucket),
            ..Default::default()
        }))
    }

    pub(super) async fn list_object_versions(
        &self,
        req: S3Request<ListObjectVersionsInput>,
    ) -> S3Result<S3Response<ListObjectVersionsOutput>> {
        let input = req.input;
        let encoding = Encoding::asked(input.encoding_type.as_ref())?;
        let max_keys = page_size(input.max_keys, "max-keys")?;
        let prefix = input.prefix.unwrap_or_default();
        let (marker, delimiter) = (input.key_marker.unwrap_or_default(), given(input.delimiter));
        let query = query(&prefix, delimiter.as_deref(), &marker, max_keys);
        let mut page = self.page(&input.bucket, query, encoding).await?;
        Ok(S3Response::new(ListObjectVersionsOutput {
            versions: page.versions(),
            common_prefixes: page.prefixes(),
            next_version_id_marker: page.next.is_some().then(|| "null".to_owned()),
            next_key_marker: page.next.as_deref().map(|next| encoding.write(next)),
            is_truncated: Some(page.truncated),
            prefix: Some(encoding.write(&prefix)),
            key_marker: Some(encoding.write(&marker)),
            version_id_marker: input.version_id_marker,
            delimiter: delimiter.as_deref().map(|delimiter| encoding.write(delimiter)),
            encoding_type: encoding.name(),
            max_keys: Some(max_keys),
            name: Some(input.bucket),
            ..Default::default()
        }))
    }
}

fn query<'a>(prefix: &'a str, delimiter: Option<&'a str>, after: &'a str, max: i32) -> ListQuery<'a> {
    ListQuery { prefix, delimiter: delimiter.unwrap_or_default(), after, max: usize::try_from(max).unwrap_or(0) }
}

/// Where the next page begins, for the client to give back as it is.
pub(super) fn write_token(last: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("{TOKEN_VERSION}{last}"))
}

pub(super) fn read_token(token: &str) -> S3Result<String> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    let last = text.and_then(|text| text.strip_prefix(TOKEN_VERSION).map(str::to_owned));
    last.ok_or_else(|| refuse(S3ErrorCode::InvalidArgument, "the continuation token was not given by this server"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_encoded_only_when_asked() {
        assert_eq!(Encoding::Plain.write("a b+ü/"), "a b+ü/");
        assert_eq!(Encoding::Url.write("a b+ü/<~_.->"), "a%20b%2B%C3%BC/%3C~_.-%3E");
        assert_eq!(Encoding::asked(None).unwrap(), Encoding::Plain);
        assert!(Encoding::asked(Some(&EncodingType::from("base64".to_owned()))).is_err());
    }

    #[test]
    fn pages_have_a_thousand_entries_at_most() {
        assert_eq!(page_size(None, "max-keys").unwrap(), 1000);
        assert_eq!(page_size(Some(5000), "max-keys").unwrap(), 1000);
        assert_eq!(page_size(Some(0), "max-keys").unwrap(), 0);
        assert!(page_size(Some(-1), "max-keys").is_err());
    }

    #[test]
    fn an_empty_delimiter_is_none() {
        assert_eq!(given(Some(String::new())), None);
        assert_eq!(given(Some("/".into())).as_deref(), Some("/"));
    }

    proptest! {
        #[test]
        fn tokens_come_back_as_the_name_they_were_made_of(name in any::<String>()) {
            prop_assert_eq!(read_token(&write_token(&name)).unwrap(), name);
        }

        #[test]
        fn no_token_makes_it_panic(token in any::<String>()) {
            let _ = read_token(&token);
        }
    }
}
