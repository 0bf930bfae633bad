//! Completing a multipart upload: what S3 wants of its parts, and of what the client says of the whole. The engine makes
//! the object ([`crate::engine::uploads`]).

use std::collections::BTreeMap;

use http::header::HOST;
use http::{HeaderMap, HeaderValue};
use s3s::crypto::{Checksum as _, Md5};
use s3s::dto::{CompleteMultipartUploadInput, CompleteMultipartUploadOutput, CompletedPart, ETag};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result};

use super::S3Door;
use super::checksums::{self, Algorithm, ChecksumPlan, bad_digest, checksum_field, set_checksum};
use super::conditions::{self, etag};
use super::errors::{OrS3, invalid_part, refuse};
use super::hosts::Hosts;
use super::listing::Encoding;
use super::multipart::upload_name;
use super::objects::checksum_type;
use super::request_xml::PartClaims;
use super::xml::MoreElements;
use crate::engine::EngineError;
use crate::engine::uploads::{Completion, NamedParts, ToComplete};
use crate::model::{NewUpload, ObjectChecksum, PartHead};

/// The smallest part but the last one, as in S3.
const PART_BYTES_MIN: u64 = 5 << 20;
/// So often the parts are looked at, if one of them is uploaded again meanwhile.
const LOOKS_MAX: usize = 3;

/// A part that the object is made of.
struct NamedPart<'a> {
    number: u16,
    part: &'a PartHead,
}

impl S3Door {
    pub(super) async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let location = self.location(&req);
        let claims = req.extensions.get::<PartClaims>().cloned().unwrap_or_default();
        let S3Request { mut input, headers, .. } = req;
        let condition = conditions::of_put(input.if_match.as_ref(), input.if_none_match.as_ref())?;
        let named = input.multipart_upload.take().and_then(|upload| upload.parts).unwrap_or_default();
        check_order(&named)?;
        let tags: Option<Vec<&str>> = named.iter().map(|part| part.e_tag.as_ref().map(ETag::value)).collect();
        let what = NamedParts { etag: tags.map(|tags| etag_of(tags.into_iter())), count: named.len() };
        let name = upload_name(&input.upload_id, &input.bucket, &input.key);
        let bytes_max = self.engine.settings().limits.object_bytes_max;
        let mut looks = 1;
        let put = loop {
            let (upload, parts) = match self.engine.to_complete(&name, &what).await.or_s3()? {
                ToComplete::Parts(upload, parts) => (upload, parts),
                ToComplete::Object(put) => break put,
            };
            check_part_checksums(ChecksumPlan::of(&upload), &named, &claims)?;
            let chosen = choose(&upload, &named, &claims, &parts)?;
            let checksum = check(&upload, &input, &headers, &chosen, bytes_max)?;
            let completion = Completion {
                upload: name.clone(),
                condition: condition.clone(),
                parts: chosen.iter().map(|part| (part.number, part.part.clone())).collect(),
                etag: object_etag(&chosen),
                checksum,
            };
            match self.engine.complete_upload(completion).await {
                Err(EngineError::PartsChanged) if looks < LOOKS_MAX => looks += 1,
                put => break put.or_s3()?,
            }
        };
        let mut output = CompleteMultipartUploadOutput {
            location: Some(location),
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(etag(&put.etag)),
            ..Default::default()
        };
        output.checksum_type = put.checksum.as_ref().map(|sum| checksum_type(sum.composite));
        set_checksum!(output, put.checksum.as_ref().map(|sum| (sum.algorithm.as_str(), sum.value.clone())));
        let mut response = S3Response::new(output);
        if let Some(checksum) = &put.checksum {
            let element = checksums::more_element(&checksum.algorithm, &checksum.value);
            response.extensions.insert(MoreElements(vec![("CompleteMultipartUploadResult", element)]));
        }
        Ok(response)
    }

    /// The address of the object that an upload becomes, as its client addresses this server.
    fn location(&self, req: &S3Request<CompleteMultipartUploadInput>) -> String {
        let host = req.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let scheme = match req.headers.get("x-forwarded-proto").map(HeaderValue::as_bytes) {
            Some(b"https") => "https",
            _ => "http",
        };
        let hosts = Hosts { domains: self.engine.settings().server.virtual_host_domains.clone() };
        let key = Encoding::Url.write(&req.input.key);
        match hosts.bucket(host) {
            Some(_) => format!("{scheme}://{host}/{key}"),
            None => format!("{scheme}://{host}/{}/{key}", req.input.bucket),
        }
    }
}

/// Refuses a list of parts whose checksums are of another algorithm than the upload's, or that has some where the checksum of
/// the whole is made of all. S3 refuses a list without any, too; here each part's is known, and clients that resume an
/// upload know the entity tags alone.
fn check_part_checksums(plan: Option<ChecksumPlan>, named: &[CompletedPart], claims: &PartClaims) -> S3Result<()> {
    let Some(plan) = plan else { return Ok(()) };
    let (mut without, mut some) = (None, false);
    for (place, part) in named.iter().enumerate() {
        let typed = Algorithm::ALL.into_iter().filter(|algorithm| checksum_field!(part, *algorithm).is_some());
        let given: Vec<Algorithm> = typed.chain(claims.of(place).map(|(algorithm, _)| algorithm)).collect();
        if given.is_empty() {
            without.get_or_insert(place);
        }
        if let Some(other) = given.iter().find(|algorithm| **algorithm != plan.algorithm) {
            let (asked, other) = (plan.algorithm.name(), other.name());
            let message = format!("the upload was created with {asked} checksums, a part is named with one of {other}");
            return Err(refuse(S3ErrorCode::InvalidRequest, message));
        }
        some |= !given.is_empty();
    }
    match without {
        Some(place) if some && !plan.full_object => {
            let (name, number) = (plan.algorithm.name(), named[place].part_number.unwrap_or_default());
            let message = format!(
                "the upload was created with {name} checksums, that of part {number} is missing in the request"
            );
            Err(refuse(S3ErrorCode::InvalidRequest, message))
        }
        _ => Ok(()),
    }
}

/// Checks what the client says of the whole, and computes its checksum.
fn check(
    upload: &NewUpload,
    input: &CompleteMultipartUploadInput,
    headers: &HeaderMap,
    chosen: &[NamedPart<'_>],
    bytes_max: u64,
) -> S3Result<Option<ObjectChecksum>> {
    let part_lens: Vec<u64> = chosen.iter().map(|part| part.part.len).collect();
    check_sizes(&part_lens, bytes_max)?;
    let len = part_lens.iter().sum();
    if input.mpu_object_size.is_some_and(|size| u64::try_from(size) != Ok(len)) {
        let message = format!("the parts have {len} bytes together, not what x-amz-mp-object-size says");
        return Err(refuse(S3ErrorCode::InvalidRequest, message));
    }
    let checksum = match ChecksumPlan::of(upload) {
        Some(plan) => Some(object_checksum(plan, chosen)?),
        None => default_checksum(chosen)?,
    };
    check_claims(input, headers, checksum.as_ref())?;
    Ok(checksum)
}

/// Refuses a list of parts that is empty or not in order.
fn check_order(named: &[CompletedPart]) -> S3Result<()> {
    if named.is_empty() || named.iter().any(|part| part.part_number.is_none()) {
        return Err(refuse(S3ErrorCode::MalformedXML, "the body must name at least one part, each by its number"));
    }
    if named.windows(2).any(|pair| pair[0].part_number >= pair[1].part_number) {
        return Err(refuse(S3ErrorCode::InvalidPartOrder, "the parts must be named in the order of their numbers"));
    }
    Ok(())
}

/// Finds the parts that are named.
fn choose<'a>(
    upload: &NewUpload,
    named: &[CompletedPart],
    claims: &PartClaims,
    parts: &'a BTreeMap<u16, PartHead>,
) -> S3Result<Vec<NamedPart<'a>>> {
    let find = |(place, named): (usize, &CompletedPart)| {
        let number = named.part_number.and_then(|number| u16::try_from(number).ok())?;
        let part = parts.get(&number)?;
        let same_etag = named.e_tag.as_ref().map(ETag::value).is_none_or(|value| value == part.etag);
        let plan = ChecksumPlan::of(upload);
        let algorithm = plan.unwrap_or(ChecksumPlan::DEFAULT).algorithm;
        let beside = claims.of(place).find(|(beside, _)| *beside == algorithm).map(|(_, value)| value);
        let claimed = checksum_field!(named, algorithm).or(beside);
        // One that a version without a default one stored has none to compare with.
        let comparable = plan.is_some() || part.checksum.is_some();
        let same_checksum = claimed.is_none() || !comparable || claimed == part.checksum.as_deref();
        (same_etag && same_checksum).then_some(NamedPart { number, part })
    };
    let found: Option<Vec<NamedPart<'a>>> = named.iter().enumerate().map(find).collect();
    found.ok_or_else(invalid_part)
}

fn check_sizes(part_lens: &[u64], object_bytes_max: u64) -> S3Result<()> {
    if part_lens.split_last().is_some_and(|(_, others)| others.iter().any(|len| *len < PART_BYTES_MIN)) {
        let message = format!("a part other than the last has less than {PART_BYTES_MIN} bytes");
        return Err(refuse(S3ErrorCode::EntityTooSmall, message));
    }
    if part_lens.iter().sum::<u64>() > object_bytes_max {
        let message = format!("the object would have more than {object_bytes_max} bytes");
        return Err(refuse(S3ErrorCode::EntityTooLarge, message));
    }
    Ok(())
}

fn object_checksum(plan: ChecksumPlan, chosen: &[NamedPart<'_>]) -> S3Result<ObjectChecksum> {
    let value = |part: &NamedPart| part.part.checksum.clone();
    let values: Vec<Option<String>> = chosen.iter().map(value).collect();
    let texts = values.iter().map(Option::as_deref);
    let value = if plan.full_object {
        checksums::full_object(plan.algorithm, texts.zip(chosen.iter().map(|part| part.part.len)))?
    } else {
        checksums::composite(plan.algorithm, texts)?
    };
    let (algorithm, composite) = (plan.algorithm.name().to_owned(), !plan.full_object);
    Ok(ObjectChecksum { algorithm, value, composite, parts: values.into_iter().flatten().collect() })
}

/// The checksum of an object whose upload was created without an algorithm. `None` if a part has none, because a version stored
/// it that computed no default one. Those of parts are not kept: S3 tells them of uploads with an algorithm alone.
fn default_checksum(chosen: &[NamedPart<'_>]) -> S3Result<Option<ObjectChecksum>> {
    if chosen.iter().any(|part| part.part.checksum.is_none()) {
        return Ok(None);
    }
    let checksum = object_checksum(ChecksumPlan::DEFAULT, chosen)?;
    Ok(Some(ObjectChecksum { parts: vec![], ..checksum }))
}

/// Compares the checksum that the client says the object has.
fn check_claims(
    input: &CompleteMultipartUploadInput,
    headers: &HeaderMap,
    checksum: Option<&ObjectChecksum>,
) -> S3Result<()> {
    let invalid = |message: &'static str| Err(refuse(S3ErrorCode::InvalidRequest, message));
    if let Some(kind) = &input.checksum_type
        && checksum.is_none_or(|checksum| checksum_type(checksum.composite) != *kind)
    {
        return invalid("x-amz-checksum-type is not what the upload was created with");
    }
    for algorithm in Algorithm::ALL {
        let beside = || headers.get(algorithm.header()).and_then(|value| value.to_str().ok());
        let Some(claimed) = checksum_field!(input, algorithm).or_else(beside) else { continue };
        let Some(checksum) = checksum.filter(|checksum| checksum.algorithm == algorithm.name()) else {
            return invalid("the upload was created without the checksum algorithm that its completion uses");
        };
        // Of a composite one, the number of parts may be left out.
        let bare = checksum.value.split_once('-').map_or(checksum.value.as_str(), |(bare, _)| bare);
        if claimed != checksum.value && claimed != bare {
            return Err(bad_digest(algorithm.name()));
        }
    }
    Ok(())
}

fn object_etag(chosen: &[NamedPart<'_>]) -> String {
    etag_of(chosen.iter().map(|part| part.part.etag.as_str()))
}

/// The MD5 of the parts' MD5s, and their number. Parts with opaque tags count with the text of these.
fn etag_of<'a>(tags: impl ExactSizeIterator<Item = &'a str>) -> String {
    let (mut md5, count) = (Md5::new(), tags.len());
    for tag in tags {
        match hex::decode(tag) {
            Ok(bytes) => md5.update(&bytes),
            Err(_) => md5.update(tag.as_bytes()),
        }
    }
    format!("{}-{count}", hex::encode(md5.finalize()))
}

#[cfg(test)]
mod tests {
    use s3s::dto::ChecksumType;

    use super::*;
    use crate::model::{Millis, ObjectHeaders};

    const TAG: &str = "25f9e794323b453885f5181f1b624d0b";

    fn named(number: i32, tag: &str) -> CompletedPart {
        CompletedPart { part_number: Some(number), e_tag: Some(etag(tag)), ..Default::default() }
    }

    fn upload(checksum: Option<ChecksumPlan>) -> NewUpload {
        NewUpload {
            bucket: "b".into(),
            key: "k".into(),
            headers: ObjectHeaders::default(),
            checksum: checksum.map(ChecksumPlan::record),
        }
    }

    fn parts(numbers: &[u16]) -> BTreeMap<u16, PartHead> {
        let head = PartHead { len: 9, etag: TAG.into(), checksum: Some("y/Q5Jg==".into()), modified: Millis(0) };
        numbers.iter().map(|number| (*number, head.clone())).collect()
    }

    fn code<T>(result: S3Result<T>) -> String {
        result.err().unwrap().code().as_str().to_owned()
    }

    #[test]
    fn parts_are_named_in_order_and_at_least_one() {
        assert_eq!(code(check_order(&[])), "MalformedXML");
        assert_eq!(code(check_order(&[CompletedPart::default()])), "MalformedXML");
        assert_eq!(code(check_order(&[named(2, TAG), named(1, TAG)])), "InvalidPartOrder");
        assert_eq!(code(check_order(&[named(1, TAG), named(1, TAG)])), "InvalidPartOrder");
        assert!(check_order(&[named(1, TAG), named(900, TAG)]).is_ok());
    }

    #[test]
    fn parts_are_those_that_were_uploaded() {
        let plan = ChecksumPlan { algorithm: Algorithm::Crc32, full_object: false };
        let wrong = CompletedPart { checksum_crc32: Some("AAAAAA==".into()), ..named(1, TAG) };
        let none = PartClaims::default();

        assert_eq!(choose(&upload(None), &[named(1, TAG), named(7, TAG)], &none, &parts(&[1, 3, 7])).unwrap().len(), 2);
        assert_eq!(code(choose(&upload(None), &[named(2, TAG)], &none, &parts(&[1]))), "InvalidPart");
        assert_eq!(code(choose(&upload(None), &[named(1, "other")], &none, &parts(&[1]))), "InvalidPart");
        assert_eq!(code(choose(&upload(Some(plan)), &[wrong], &none, &parts(&[1]))), "InvalidPart");
        assert_eq!(code(choose(&upload(None), &[named(-1, TAG)], &none, &parts(&[1]))), "InvalidPart");
    }

    #[test]
    fn parts_are_named_with_checksums_of_the_upload_alone() {
        let plan = |algorithm| Some(ChecksumPlan { algorithm, full_object: false });
        let crc = CompletedPart { checksum_crc32: Some("y/Q5Jg==".into()), ..named(1, TAG) };
        let none = PartClaims::default();

        assert!(check_part_checksums(plan(Algorithm::Crc32), std::slice::from_ref(&crc), &none).is_ok());
        assert!(check_part_checksums(None, std::slice::from_ref(&crc), &none).is_ok());
        assert_eq!(
            code(check_part_checksums(plan(Algorithm::Sha1), std::slice::from_ref(&crc), &none)),
            "InvalidRequest"
        );
        assert!(check_part_checksums(plan(Algorithm::Crc32), &[named(1, TAG)], &none).is_ok());
        let full = Some(ChecksumPlan { algorithm: Algorithm::Crc32, full_object: true });
        let one_of_two = [crc, named(2, TAG)];
        assert!(check_part_checksums(full, &one_of_two, &none).is_ok());
        assert_eq!(code(check_part_checksums(plan(Algorithm::Crc32), &one_of_two, &none)), "InvalidRequest");
    }

    #[test]
    fn only_the_last_part_may_be_small() {
        assert!(check_sizes(&[PART_BYTES_MIN, 1], u64::MAX).is_ok());
        assert_eq!(code(check_sizes(&[PART_BYTES_MIN - 1, 1], u64::MAX)), "EntityTooSmall");
        assert_eq!(code(check_sizes(&[PART_BYTES_MIN, 1], PART_BYTES_MIN)), "EntityTooLarge");
    }

    #[test]
    fn the_entity_tag_is_the_md5_of_md5s_with_their_number() {
        let parts = parts(&[1]);
        let chosen = choose(&upload(None), &[named(1, TAG)], &PartClaims::default(), &parts).unwrap();

        // md5 of the 16 bytes of TAG.
        assert_eq!(object_etag(&chosen), format!("{}-1", hex::encode(Md5::checksum(&hex::decode(TAG).unwrap()))));
    }

    #[test]
    fn a_claimed_checksum_is_compared_with_and_without_the_number_of_parts() {
        let plan = ChecksumPlan { algorithm: Algorithm::Crc32, full_object: false };
        let parts = parts(&[1]);
        let chosen = choose(&upload(Some(plan)), &[named(1, TAG)], &PartClaims::default(), &parts).unwrap();
        let checksum = object_checksum(plan, &chosen).unwrap();
        let claim =
            |value: &str| CompleteMultipartUploadInput { checksum_crc32: Some(value.to_owned()), ..Default::default() };

        let bare = checksum.value.strip_suffix("-1").unwrap();
        for right in [bare, &checksum.value] {
            assert!(check_claims(&claim(right), &HeaderMap::new(), Some(&checksum)).is_ok());
        }
        assert_eq!(code(check_claims(&claim("AAAAAA=="), &HeaderMap::new(), Some(&checksum))), "BadDigest");
        assert_eq!(code(check_claims(&claim(bare), &HeaderMap::new(), None)), "InvalidRequest");
    }

    /// The CRC64NVME of `123456789`, as the catalogue of CRCs has it, and of the same twice.
    const DIGITS: &str = "rosUhgp5mIg=";
    const DIGITS_TWICE: &str = "oyJKiIDYJOQ=";

    fn default_parts(checksums: &[Option<&str>]) -> BTreeMap<u16, PartHead> {
        let head = |sum: &Option<&str>| PartHead {
            len: 9,
            etag: TAG.into(),
            checksum: sum.map(str::to_owned),
            modified: Millis(0),
        };
        checksums.iter().zip(1..).map(|(sum, number)| (number, head(sum))).collect()
    }

    #[test]
    fn an_upload_without_an_algorithm_gets_the_default_checksum_of_the_whole() {
        let (there, none) = (default_parts(&[Some(DIGITS), Some(DIGITS)]), PartClaims::default());
        let chosen = choose(&upload(None), &[named(1, TAG), named(2, TAG)], &none, &there).unwrap();
        let claim = |value: &str| CompleteMultipartUploadInput {
            checksum_crc64nvme: Some(value.to_owned()),
            checksum_type: Some(ChecksumType::from_static(ChecksumType::FULL_OBJECT)),
            ..Default::default()
        };

        let checksum = default_checksum(&chosen).unwrap().unwrap();

        let both = Algorithm::Crc64Nvme.of(b"123456789123456789");
        assert_eq!(base64::Engine::encode(&base64::engine::general_purpose::STANDARD, both), DIGITS_TWICE);
        let expected = ObjectChecksum {
            algorithm: "CRC64NVME".into(),
            value: DIGITS_TWICE.into(),
            composite: false,
            parts: vec![],
        };
        assert_eq!(checksum, expected);
        assert!(check_claims(&claim(DIGITS_TWICE), &HeaderMap::new(), Some(&checksum)).is_ok());
        assert_eq!(code(check_claims(&claim(DIGITS), &HeaderMap::new(), Some(&checksum))), "BadDigest");
    }

    #[test]
    fn parts_of_an_upload_without_an_algorithm_may_be_named_with_any_checksum_but_a_wrong_default_one() {
        let with = |crc64: Option<&str>| CompletedPart {
            checksum_crc32: Some("AAAAAA==".into()),
            checksum_crc64nvme: crc64.map(str::to_owned),
            ..named(1, TAG)
        };
        let of =
            |part, stored| choose(&upload(None), &[part], &PartClaims::default(), &stored).map(|parts| parts.len());

        assert_eq!(of(with(None), default_parts(&[Some(DIGITS)])).unwrap(), 1);
        assert_eq!(of(with(Some(DIGITS)), default_parts(&[Some(DIGITS)])).unwrap(), 1);
        assert_eq!(code(of(with(Some(DIGITS_TWICE)), default_parts(&[Some(DIGITS)]))), "InvalidPart");
        // As before the daemon computed them.
        assert_eq!(of(with(Some(DIGITS_TWICE)), default_parts(&[None])).unwrap(), 1);
    }

    #[test]
    fn an_upload_with_parts_of_an_older_version_completes_without_a_checksum() {
        let there = default_parts(&[None, Some(DIGITS)]);
        let chosen = choose(&upload(None), &[named(1, TAG), named(2, TAG)], &PartClaims::default(), &there).unwrap();

        assert_eq!(default_checksum(&chosen).unwrap(), None);
    }
}
