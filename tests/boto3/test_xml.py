"""Bodies of requests as XML that hand-written clients and other libraries send."""

import random
import xml.etree.ElementTree as ElementTree
from xml.sax.saxutils import escape

import pytest

from checksums import content_md5
from expect import body_of

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


def delete(raw, bucket, body, status=200, headers=None):
    body = body if isinstance(body, bytes) else body.encode()
    headers = {"Content-MD5": content_md5(body), **(headers or {})}
    response = raw.send(raw.signed("POST", bucket, query=[("delete", "")], headers=headers, body=body))
    assert response.status == status, response
    return response


def deleted(response):
    root = ElementTree.fromstring(response.body)
    return [entry.text for entry in root.iter(f"{{{NAMESPACE}}}Key")]


def keys_below(s3, bucket, prefix):
    listed = s3.list_objects_v2(Bucket=bucket, Prefix=prefix, EncodingType="url").get("Contents", [])
    return [entry["Key"] for entry in listed]


def test_a_key_in_a_cdata_section_is_the_key_that_is_deleted(s3, raw, bucket, prefix):
    for key in (prefix, prefix + "a&b"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")

    answer = delete(raw, bucket, f"<Delete><Object><Key>{prefix}<![CDATA[a&b]]></Key></Object></Delete>")

    assert deleted(answer) == [prefix + "a&b"]
    assert keys_below(s3, bucket, prefix) == [prefix]


WAYS = [
    lambda c: escape(c).replace("\r", "&#13;"),
    lambda c: f"&#{ord(c)};",
    lambda c: f"&#x{ord(c):x};",
    lambda c: f"<![CDATA[{c}]]>" if c not in "\r]" else f"&#{ord(c)};",
    lambda c: f"<!-- - -->&#{ord(c)};<?target data?>",
]


def test_random_keys_are_deleted_however_their_characters_are_written(s3, raw, bucket, prefix):
    dice = random.Random(11)
    alphabet = "ab /&<>\"'\r\n\t]\u00e9\u2028\U0001f600"
    keys = sorted({prefix + "".join(dice.choices(alphabet, k=dice.randint(1, 12))) for _ in range(40)})
    for way in [*WAYS, None]:
        for key in keys:
            s3.put_object(Bucket=bucket, Key=key, Body=b"x")
        write = way or (lambda c: dice.choice(WAYS)(c))
        objects = "".join(f"<Object><Key>{''.join(map(write, key))}</Key></Object>" for key in keys)

        answer = delete(raw, bucket, f"<Delete>{objects}<Quiet>0</Quiet></Delete>")

        assert sorted(deleted(answer)) == keys
        assert not keys_below(s3, bucket, prefix)


@pytest.mark.parametrize(
    "body",
    [
        "<s3:Delete xmlns:s3='{ns}'><s3:Object><s3:Key>{key}</s3:Key></s3:Object><s3:Quiet>1</s3:Quiet></s3:Delete>",
        "<?xml version='1.0' encoding='UTF-8'?>\n<Delete xmlns='{ns}'>\n<Quiet> true </Quiet>\n<Object>\n<Key>{key}</Key>"
        "<VersionId> null </VersionId></Object></Delete>\n",
    ],
    ids=["prefixes", "white space"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_other_libraries_write_is_understood(s3, raw, bucket, key, body, encoding):
    s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    text = body.format(ns=NAMESPACE, key=key).replace("UTF-8", encoding.removesuffix("-sig"))

    answer = delete(raw, bucket, text.encode(encoding))

    assert deleted(answer) == [], "Quiet"
    assert not keys_below(s3, bucket, key)


@pytest.mark.parametrize(
    "body",
    [
        "<Delete><Object><Key>{key}</Key></Object>",
        "<Delete><Object><Key>{key}</Key><Key>{key}</Key></Object></Delete>",
        "<Delete><Object><Key>{key}</Key><IfMatch>e</IfMatch></Object></Delete>",
        "<!DOCTYPE Delete><Delete><Object><Key>{key}</Key></Object></Delete>",
        "<!DOCTYPE d [<!ENTITY k '{key}'>]><Delete><Object><Key>&k;</Key></Object></Delete>",
        "<x:Delete><Object><Key>{key}</Key></Object></x:Delete>",
        "<Delete><Object><Key>{key}</Key></Object><Quiet>maybe</Quiet></Delete>",
    ],
)
def test_what_is_malformed_deletes_nothing(s3, raw, bucket, key, body):
    s3.put_object(Bucket=bucket, Key=key, Body=b"x")

    answer = delete(raw, bucket, body.format(key=key), status=400)

    assert answer.error_code() == "MalformedXML"
    assert body_of(s3, bucket, key) == b"x"


def test_a_completion_of_cdata_and_white_space_completes(s3, raw, bucket, key, multipart):
    etag = s3.upload_part(Bucket=bucket, Key=key, UploadId=multipart, PartNumber=1, Body=b"abc")["ETag"]
    part = f"<Part>\n<PartNumber> 1\n</PartNumber><ETag> <![CDATA[{etag}]]>\n</ETag></Part>"
    body = f"<CompleteMultipartUpload>{part}</CompleteMultipartUpload>".encode()

    answer = raw.send(raw.signed("POST", bucket, key, query=[("uploadId", multipart)], body=body))

    assert answer.status == 200, answer
    assert body_of(s3, bucket, key) == b"abc"


def test_a_location_in_cdata_creates_the_bucket(s3, raw, new_bucket):
    name = new_bucket + "-2"
    location = "<LocationConstraint>\n<![CDATA[us-east-1]]></LocationConstraint>"
    body = f"<CreateBucketConfiguration>{location}</CreateBucketConfiguration>".encode()

    for query in ([], [("x-id", "CreateBucket")]):
        answer = raw.send(raw.signed("PUT", name, query=query, body=body))
        assert answer.status == 200, answer
        s3.delete_bucket(Bucket=name)


def test_a_parameter_may_be_encoded(s3, raw, bucket, prefix):
    for key in (prefix, prefix + "a&b"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    body = f"<Delete><Object><Key>{prefix}<![CDATA[a&b]]></Key></Object></Delete>".encode()
    request = raw.signed("POST", bucket, query=[("delete", "")], headers={"Content-MD5": content_md5(body)}, body=body)
    request.target = request.target.replace("delete", "%64elete")

    assert deleted(raw.send(request)) == [prefix + "a&b"]
    assert keys_below(s3, bucket, prefix) == [prefix]


@pytest.mark.esker
def test_an_unsigned_batch_delete_deletes_nothing(s3, raw, bucket, prefix):
    s3.put_object(Bucket=bucket, Key=prefix + "a", Body=b"x")
    unsigned = raw.unsigned("POST", f"/{bucket}?delete", body=f"<Delete><Object><Key>{prefix}a</Key></Object></Delete>".encode())

    assert raw.send(unsigned).status == 403
    assert keys_below(s3, bucket, prefix) == [prefix + "a"]
