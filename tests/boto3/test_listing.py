"""Listings, both versions: order, prefixes, delimiters, pages, encodings."""

import uuid
import xml.etree.ElementTree as ElementTree
from urllib.parse import unquote_plus

import pytest

from checksums import etag
from conftest import in_threads
from expect import refused

TREE = ["a-b", "a/1", "a/2", "a/b/3", "b/", "b/4", "c"]


@pytest.fixture
def tree(s3, bucket, prefix):
    """The objects of `TREE` below `prefix`."""
    for name in TREE:
        s3.put_object(Bucket=bucket, Key=prefix + name, Body=b"" if name.endswith("/") else name.encode())
    return prefix


@pytest.fixture(scope="module")
def crowd(stock_s3, bucket):
    """A directory of 1,005 objects, and their keys in order."""
    directory = f"conformance/crowd-{uuid.uuid4().hex[:12]}/"
    keys = [f"{directory}{n:04}" for n in range(1005)]
    in_threads(32, lambda key: stock_s3.put_object(Bucket=bucket, Key=key, Body=b"x"), keys)
    return directory, keys


def keys_of(page):
    return [entry["Key"] for entry in page.get("Contents", [])]


def prefixes_of(page):
    return [entry["Prefix"] for entry in page.get("CommonPrefixes", [])]


def below(prefix, *names):
    return [prefix + name for name in names]


def both(s3):
    return s3.list_objects_v2, s3.list_objects


def test_a_prefix_selects_and_keys_are_in_order(s3, bucket, tree):
    for listing in both(s3):
        assert keys_of(listing(Bucket=bucket, Prefix=tree)) == below(tree, *sorted(TREE))
        assert keys_of(listing(Bucket=bucket, Prefix=tree + "a/")) == below(tree, "a/1", "a/2", "a/b/3")
        assert keys_of(listing(Bucket=bucket, Prefix=tree + "a/b")) == below(tree, "a/b/3")
        assert keys_of(listing(Bucket=bucket, Prefix=tree + "nothing")) == []


def test_an_entry_describes_its_object(s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"0123456789")
    modified = s3.head_object(Bucket=bucket, Key=key)["LastModified"]

    for listing in both(s3):
        entry, = listing(Bucket=bucket, Prefix=key)["Contents"]
        assert (entry["Size"], entry["ETag"], entry["StorageClass"]) == (10, etag(b"0123456789"), "STANDARD")
        assert entry["LastModified"].replace(microsecond=0) == modified


def test_a_delimiter_rolls_up_what_follows_it(s3, bucket, tree):
    for listing in both(s3):
        page = listing(Bucket=bucket, Prefix=tree, Delimiter="/")
        assert keys_of(page) == below(tree, "a-b", "c")
        assert prefixes_of(page) == below(tree, "a/", "b/")
        assert page["Delimiter"] == "/"

        page = listing(Bucket=bucket, Prefix=tree + "b/", Delimiter="/")
        assert keys_of(page) == below(tree, "b/", "b/4")
        assert prefixes_of(page) == []

        page = listing(Bucket=bucket, Prefix=tree + "b", Delimiter="/")
        assert (keys_of(page), prefixes_of(page)) == ([], below(tree, "b/"))


def test_a_key_and_the_directory_of_its_name_are_listed_side_by_side(s3, bucket, prefix):
    for name in ("a", "a-b", "a/1", "a/2"):
        s3.put_object(Bucket=bucket, Key=prefix + name, Body=b"")

    for listing in both(s3):
        page = listing(Bucket=bucket, Prefix=prefix, Delimiter="/")
        assert keys_of(page) == below(prefix, "a", "a-b")
        assert prefixes_of(page) == below(prefix, "a/")


def test_a_delimiter_may_be_any_text(s3, bucket, prefix):
    for name in ("x--1", "x--2", "y-1", "z"):
        s3.put_object(Bucket=bucket, Key=prefix + name, Body=b"")

    page = s3.list_objects_v2(Bucket=bucket, Prefix=prefix, Delimiter="--")

    assert keys_of(page) == below(prefix, "y-1", "z")
    assert prefixes_of(page) == below(prefix, "x--")


def test_an_empty_delimiter_is_none(s3, raw, bucket, tree):
    for listing in both(s3):
        page = listing(Bucket=bucket, Prefix=tree, Delimiter="")
        assert keys_of(page) == below(tree, *sorted(TREE))
        assert prefixes_of(page) == []
    for version in ([("list-type", "2")], []):
        response = raw.send(raw.signed("GET", bucket, query=[*version, ("delimiter", ""), ("prefix", tree)]))
        assert response.status == 200
        assert response.body.count(b"<Key>") == len(TREE)


def test_max_keys_zero_is_an_empty_page(s3, bucket, tree):
    for listing in both(s3):
        page = listing(Bucket=bucket, Prefix=tree, MaxKeys=0)
        assert keys_of(page) == []
        assert page["IsTruncated"] is False
        assert page["MaxKeys"] == 0


def test_pages_of_one_cover_everything_once(s3, bucket, tree):
    seen, token = [], {}
    for _ in range(2 * len(TREE)):
        page = s3.list_objects_v2(Bucket=bucket, Prefix=tree, MaxKeys=1, **token)
        assert page["KeyCount"] == len(keys_of(page)) <= 1
        seen += keys_of(page)
        if not page["IsTruncated"]:
            break
        token = {"ContinuationToken": page["NextContinuationToken"]}

    assert seen == below(tree, *sorted(TREE))
    assert page["IsTruncated"] is False


def test_version_1_pages_by_marker(s3, bucket, tree):
    seen, marker = [], ""
    for _ in range(len(TREE)):
        page = s3.list_objects(Bucket=bucket, Prefix=tree, MaxKeys=1, Marker=marker)
        seen += keys_of(page)
        if not page["IsTruncated"]:
            break
        marker = keys_of(page)[-1]

    assert seen == below(tree, *sorted(TREE))
    assert page["IsTruncated"] is False


def test_common_prefixes_count_towards_max_keys(s3, bucket, tree):
    rolled, token = [], {}
    for _ in range(2):
        page = s3.list_objects_v2(Bucket=bucket, Prefix=tree, Delimiter="/", MaxKeys=2, **token)
        assert page["KeyCount"] == len(keys_of(page)) + len(prefixes_of(page)) <= 2
        rolled.append(sorted(keys_of(page) + prefixes_of(page)))
        token = {"ContinuationToken": page.get("NextContinuationToken", "")}

    assert rolled == [below(tree, "a-b", "a/"), below(tree, "b/", "c")]
    assert page["IsTruncated"] is False


def test_version_1_continues_after_a_common_prefix(s3, bucket, tree):
    seen, marker = [], ""
    for _ in range(4):
        page = s3.list_objects(Bucket=bucket, Prefix=tree, Delimiter="/", MaxKeys=1, Marker=marker)
        seen += keys_of(page) + prefixes_of(page)
        if not page["IsTruncated"]:
            break
        marker = page["NextMarker"]

    assert seen == below(tree, "a-b", "a/", "b/", "c")
    assert page["IsTruncated"] is False


def test_paginators_of_the_client_library(s3, bucket, tree):
    for operation in ("list_objects_v2", "list_objects"):
        pages = s3.get_paginator(operation).paginate(Bucket=bucket, Prefix=tree, Delimiter="/",
                                                     PaginationConfig={"PageSize": 1})
        seen = [name for page in pages for name in keys_of(page) + prefixes_of(page)]
        assert seen == below(tree, "a-b", "a/", "b/", "c")


@pytest.mark.parametrize("after, rest", [("a", TREE), ("a-b", TREE[1:]), ("a/", TREE[1:]), ("a/2", TREE[3:]),
                                         ("bz", ["c"]), ("c", []), ("", TREE)])
def test_start_after_and_marker_are_exclusive_and_need_not_exist(s3, bucket, tree, after, rest):
    assert sorted(TREE) == TREE

    assert keys_of(s3.list_objects_v2(Bucket=bucket, Prefix=tree, StartAfter=tree + after)) == below(tree, *rest)
    assert keys_of(s3.list_objects(Bucket=bucket, Prefix=tree, Marker=tree + after)) == below(tree, *rest)


def test_order_is_that_of_utf8_bytes(s3, bucket, prefix):
    # UTF-16 would put the emoji before U+FFEE, and a locale the umlaut beside its vowel.
    names = ["Z", "a", "z", "~", "ä", "日", "\uffee", "😀"]
    for name in reversed(names):
        s3.put_object(Bucket=bucket, Key=prefix + name, Body=b"")

    for listing in both(s3):
        assert keys_of(listing(Bucket=bucket, Prefix=prefix)) == below(prefix, *names)
        assert keys_of(listing(Bucket=bucket, Prefix=prefix, MaxKeys=6)) == below(prefix, *names[:6])


def test_keys_are_url_encoded_only_when_asked(s3, raw, bucket, prefix):
    name = prefix + "a b+c/ü&<d>"
    s3.put_object(Bucket=bucket, Key=name, Body=b"")

    for version in ([("list-type", "2")], []):
        for encoding in ([("encoding-type", "url")], []):
            query = [*version, *encoding, ("prefix", prefix)]
            listing = ElementTree.fromstring(raw.send(raw.signed("GET", bucket, query=query)).body)
            key = listing.findtext("{*}Contents/{*}Key")
            if encoding:
                assert listing.findtext("{*}EncodingType") == "url"
                assert key.isascii() and "<" not in key and " " not in key
                key = unquote_plus(key)
            assert key == name


def test_url_encoding_covers_prefixes_delimiter_and_markers(s3, bucket, prefix):
    for name in ("x y/1", "ü z/2", "w"):
        s3.put_object(Bucket=bucket, Key=prefix + name, Body=b"")

    page = s3.list_objects_v2(Bucket=bucket, Prefix=prefix, Delimiter="/", StartAfter=prefix + "a b")
    first = s3.list_objects(Bucket=bucket, Prefix=prefix, Delimiter="/", MaxKeys=2)

    assert prefixes_of(page) == below(prefix, "x y/", "ü z/")
    assert page["StartAfter"] == prefix + "a b"
    assert first["NextMarker"] == prefix + "x y/"


def test_a_key_with_a_control_character_is_listed_url_encoded(s3, bucket, prefix):
    s3.put_object(Bucket=bucket, Key=prefix + "a\x01b", Body=b"")

    assert keys_of(s3.list_objects_v2(Bucket=bucket, Prefix=prefix)) == [prefix + "a\x01b"]


def test_a_page_holds_at_most_a_thousand_whatever_is_asked(s3, bucket, crowd):
    directory, keys = crowd

    for listing in both(s3):
        page = listing(Bucket=bucket, Prefix=directory, MaxKeys=5000)
        assert page["MaxKeys"] == 1000
        assert keys_of(page) == keys[:1000]
        assert page["IsTruncated"] is True


def test_the_default_page_is_a_thousand_and_the_next_one_the_rest(s3, bucket, crowd):
    directory, keys = crowd

    first = s3.list_objects_v2(Bucket=bucket, Prefix=directory)
    rest = s3.list_objects_v2(Bucket=bucket, Prefix=directory, ContinuationToken=first["NextContinuationToken"])

    assert (first["KeyCount"], rest["KeyCount"]) == (1000, 5)
    assert keys_of(first) + keys_of(rest) == keys
    assert rest["IsTruncated"] is False and "NextContinuationToken" not in rest


def test_a_crowd_behind_a_delimiter_is_one_prefix(s3, bucket, crowd):
    directory, _ = crowd

    page = s3.list_objects_v2(Bucket=bucket, Prefix=directory[:-1], Delimiter="/", MaxKeys=1)

    assert prefixes_of(page) == [directory]
    assert page["IsTruncated"] is False


def test_owner_is_given_when_asked_for(s3, bucket, tree):
    entry = s3.list_objects_v2(Bucket=bucket, Prefix=tree, MaxKeys=1, FetchOwner=True)["Contents"][0]

    assert entry["Owner"]["ID"]
    assert "Owner" not in s3.list_objects_v2(Bucket=bucket, Prefix=tree, MaxKeys=1)["Contents"][0]


@pytest.mark.parametrize("query", [[("max-keys", "-1")], [("max-keys", "many")]], ids=["negative", "no number"])
def test_max_keys_that_is_no_count_is_refused(raw, bucket, query):
    for version in ([("list-type", "2")], []):
        response = raw.send(raw.signed("GET", bucket, query=[*version, *query]))
        assert (response.status, response.error_code()) == (400, "InvalidArgument")


def test_an_unknown_encoding_is_refused(raw, bucket):
    response = raw.send(raw.signed("GET", bucket, query=[("list-type", "2"), ("encoding-type", "base64")]))

    assert (response.status, response.error_code()) == (400, "InvalidArgument")


def test_a_continuation_token_that_was_never_given_is_refused(s3, bucket, tree):
    with refused(400, "InvalidArgument"):
        s3.list_objects_v2(Bucket=bucket, Prefix=tree, ContinuationToken="\u2603 not a token")


def test_versions_are_listed_in_pages(s3, bucket, tree):
    pages = s3.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=tree,
                                                              PaginationConfig={"PageSize": 3})

    entries = [entry for page in pages for entry in page.get("Versions", [])]
    assert [entry["Key"] for entry in entries] == below(tree, *TREE)
    assert {entry["VersionId"] for entry in entries} == {"null"}


def test_versions_are_rolled_up_by_a_delimiter(s3, bucket, tree):
    page = s3.list_object_versions(Bucket=bucket, Prefix=tree, Delimiter="/")

    assert [entry["Key"] for entry in page["Versions"]] == below(tree, "a-b", "c")
    assert prefixes_of(page) == below(tree, "a/", "b/")
