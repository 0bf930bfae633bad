"""The steps that each client goes through. Whatever the client says, the referee looks at what became of it."""

import hashlib
import random
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

from .driver import NotOffered, Refusal

KIB, MIB = 1024, 1024 * 1024
PART_BYTES = 5 * MIB
# More than what each client puts into one request by itself.
LARGE_BYTES = 20 * MIB + 13
LISTED = 1050
ABORT_SECONDS = 60
LISTING_BUCKET = "listing"

# What clients, XML and URLs have a meaning of their own for.
ODD_NAMES = [
    "a b", " lead and trail ", "a+b", "100%", "%41", "%2F%2f", "a&b=c", "<x>&amp;\"'", "\u00fcml\u00e4ut", "u\u0308",
    "\u65e5\u672c\u8a9e", "\U0001f600", "a//b", "//", "folder/", "q?x=1#y", "back\\slash", "semi;co,lon:",
    "star*[x]{y}|^`", "~$@!'()", "a" * 200, "dotted..name.",
]


class Wrong(Exception):
    """The client's step did not do what it says, or not with these bytes."""


def check(condition, what):
    if not condition:
        raise Wrong(what)


@dataclass
class Files:
    """What is uploaded; the same for all clients."""

    folder: object

    def __post_init__(self):
        numbers = random.Random(7)
        self.content = {
            "empty": b"", "small": numbers.randbytes(1000), "other": numbers.randbytes(900),
            "large": numbers.randbytes(LARGE_BYTES), "parts": numbers.randbytes(2 * PART_BYTES + 100),
        }
        for name, content in self.content.items():
            (self.folder / name).write_bytes(content)

    def path(self, name):
        return str(self.folder / name)


@dataclass
class Turn:
    """A client with a bucket of its own, and who checks it."""

    driver: object
    referee: object
    files: Files
    folder: object
    bucket: str

    def ask(self, operation, **question):
        return self.driver.ask(operation, **{"bucket": self.bucket, **question})

    def expect(self, key, name, told=None):
        """The referee finds this content, and the entity tag that the client was told."""
        found = self.referee.get(self.bucket, key)
        check(found, f"{key!r} is not there")
        content, etag = found
        check(content == self.files.content[name], f"{key!r} has other bytes than those that were sent")
        if told and told.get("etag"):
            check(_bare(told["etag"]) == etag, f"{key!r}: the client was told {told['etag']}, it has {etag}")
        return etag

    def expect_gone(self, key):
        check(self.referee.get(self.bucket, key) is None, f"{key!r} is still there")

    def lay(self, key, name="small"):
        """The referee puts an object there."""
        return self.referee.put(self.bucket, key, self.files.content[name])

    def fetched(self, operation, **question):
        to = self.folder / "fetched"
        to.unlink(missing_ok=True)
        self.ask(operation, to=str(to), **question)
        return to.read_bytes()

    def expect_refusal(self, kind, operation, **question):
        try:
            told = self.ask(operation, **question)
        except Refusal as refusal:
            check(refusal.kind == kind, f"{operation}: {refusal}; expected: {kind}")
        else:
            raise Wrong(f"{operation} of {question.get('key')!r} went through ({told}); expected: {kind}")


def put_small(turn):
    for name in ("small", "empty"):
        told = turn.ask("put", key=f"put/{name}", file=turn.files.path(name))
        turn.expect(f"put/{name}", name, told)


def put_large(turn):
    told = turn.ask("put", key="put/large", file=turn.files.path("large"))
    turn.expect("put/large", "large", told)


def put_stream(turn):
    told = turn.ask("put_stream", key="put/stream", file=turn.files.path("large"))
    turn.expect("put/stream", "large", told)


def get(turn):
    for name in ("small", "empty", "large"):
        turn.lay(f"get/{name}", name)
        got = turn.fetched("get", key=f"get/{name}")
        check(got == turn.files.content[name], f"the client got other bytes of {name}")


def get_range(turn):
    turn.lay("range/large", "large")
    for offset, length in ((0, 1), (1000, 3 * MIB), (LARGE_BYTES - 7, 7)):
        got = turn.fetched("range", key="range/large", offset=offset, length=length)
        expected = turn.files.content["large"][offset:offset + length]
        check(got == expected, f"other bytes at {offset}, {len(got)} of {length}")


def head(turn):
    etag = turn.lay("head/small", "small")
    told = turn.ask("head", key="head/small")
    check(told["size"] == 1000, f"size {told['size']} instead of 1000")
    if "etag" in told:
        check(_bare(told["etag"]) == etag, f"entity tag {told['etag']} instead of {etag}")


def missing(turn):
    turn.lay("missing/neighbour")
    turn.expect_refusal("missing", "get", key="missing/neighbou", to=str(turn.folder / "fetched"))
    turn.expect_refusal("missing", "head", key="missing/neighbou")


def listing_keys():
    """In the order of their UTF-8 bytes. Every fifth needs an escape in a URL or in XML."""
    odd = ["", " ", "+", "&", "%"]
    return sorted((f"page/{number % 5}/{odd[number % 5]}{number:05}" for number in range(LISTED)), key=str.encode)


def list_pages(turn):
    """In pages of 100 where the client has a word in it, else in its own."""
    expected = listing_keys()
    listed = turn.ask("list", bucket=LISTING_BUCKET, prefix="page/", page=100)["keys"]
    check(len(listed) == len(expected), f"{len(listed)} keys are listed of {len(expected)}")
    check(sorted(listed, key=str.encode) == expected, "other keys are listed")


def list_folder(turn):
    for key in ("tree/a", "tree/b c/1", "tree/b c/2", "tree/d/e/f"):
        turn.lay(key)
    told = turn.ask("list_folder", prefix="tree/")
    folders = sorted(folder.rstrip("/") for folder in told["folders"])
    check(folders == ["tree/b c", "tree/d"], f"folders {folders}")
    check(told["keys"] == ["tree/a"], f"keys {told['keys']}")


def copy(turn):
    _, plain = _without(turn, "copy")
    for key, name in (("copy/a" if plain else "copy/a b+c%20\u00fc&", "small"), ("copy/large", "large")):
        turn.lay(key, name)
        turn.ask("copy", key=key, to=f"{key}-2")
        turn.expect(f"{key}-2", name)
        turn.expect(key, name)
    return plain


def copy_if_absent(turn):
    for name in ("small", "empty"):
        turn.lay(f"copy-absent/{name} +", name)
        turn.ask("copy_if_absent", key=f"copy-absent/{name} +", to=f"copy-absent/{name}-2")
        turn.expect(f"copy-absent/{name}-2", name)
        turn.lay("copy-absent/other", "other")
        turn.expect_refusal("precondition", "copy_if_absent", key="copy-absent/other", to=f"copy-absent/{name}-2")
        turn.expect(f"copy-absent/{name}-2", name)


def put_if_absent(turn):
    told = turn.ask("put_if_absent", key="absent/a", file=turn.files.path("small"))
    turn.expect("absent/a", "small", told)
    turn.expect_refusal("precondition", "put_if_absent", key="absent/a", file=turn.files.path("other"))
    turn.expect("absent/a", "small")


def put_if_match(turn):
    etag = turn.lay("match/a", "small")
    told = turn.ask("put_if_match", key="match/a", file=turn.files.path("other"), etag=f'"{etag}"')
    turn.expect("match/a", "other", told)
    turn.expect_refusal("precondition", "put_if_match", key="match/a", file=turn.files.path("small"), etag=f'"{etag}"')
    turn.expect("match/a", "other")


def delete(turn):
    turn.lay("delete/a")
    turn.lay("delete/a b")
    turn.ask("delete", key="delete/a")
    turn.expect_gone("delete/a")
    turn.expect("delete/a b", "small")


def odd_names(turn):
    """Returns why some names were left out, if any were."""
    names, reason = _odd_names(turn)
    for name in names:
        turn.ask("put", key=f"odd/{name}", file=turn.files.path("small"))
        turn.expect(f"odd/{name}", "small")
        got = turn.fetched("get", key=f"odd/{name}")
        check(got == turn.files.content["small"], f"the client got other bytes of {name!r}")
    expected = sorted(f"odd/{name}" for name in names)
    found = sorted(turn.referee.keys(turn.bucket, "odd/"))
    check(found == expected, f"there is {_difference(found, expected)}")
    listed = sorted(turn.ask("list", prefix="odd/", page=1000)["keys"])
    check(listed == expected, f"the client lists {_difference(listed, expected)}")
    return reason


def delete_many(turn):
    """What a name would become if somebody decoded or trimmed it lies beside, and has to stay."""
    names, reason = _odd_names(turn)
    keys = [f"many/{name}" for name in names]
    others = ["manya b", "many-2/A", "many-2/lead and trail", "many-2/a", "many-2/a/b", "many-2/folder"]
    for key in keys + others:
        turn.lay(key)
    turn.ask("delete_many", keys=keys, prefix="many/")
    left = sorted(turn.referee.keys(turn.bucket, "many"))
    check(left == sorted(others), f"left is {_difference(left, others)}")
    return reason


def delete_some(turn):
    """A batch takes what it names, and nothing that looks like it."""
    named = ["some/%41", "some/a%20b", "some/a+b", "some/x<&>", "some/ y "]
    alike = ["some/A", "some/a b", "some/x&lt;&amp;&gt;", "some/y", "some/x"]
    for key in named + alike:
        turn.lay(key)
    turn.ask("delete_some", keys=[*named, "some/not there"])
    left = sorted(turn.referee.keys(turn.bucket, "some/"))
    check(left == sorted(alike), f"left is {_difference(left, sorted(alike))}")


def multipart(turn):
    """In parts of 5 MiB: the entity tag tells that these were the parts."""
    told = turn.ask("multipart", key="multipart/a", file=turn.files.path("parts"), part_bytes=PART_BYTES)
    etag = turn.expect("multipart/a", "parts", told)
    content = turn.files.content["parts"]
    digests = [hashlib.md5(content[at:at + PART_BYTES]).digest() for at in range(0, len(content), PART_BYTES)]
    expected = f"{hashlib.md5(b''.join(digests)).hexdigest()}-{len(digests)}"
    check(etag == expected, f"entity tag {etag} instead of {expected}")


def abort(turn):
    """An upload of the referee's that the client finds, or one of its own."""
    upload = turn.referee.begin_upload(turn.bucket, "abort/a b", turn.files.content["small"])
    try:
        turn.ask("abort", key="abort/a b", upload=upload)
        left = turn.referee.uploads(turn.bucket)
        check(left == [], f"uploads are left: {left}")
        turn.expect_gone("abort/a b")
    finally:
        turn.referee.abort_all(turn.bucket)


def give_up(turn):
    """The source of a large upload fails in the middle: nothing is there, and nothing is left."""
    turn.expect_refusal("other", "give_up", key="give-up/a", file=turn.files.path("large"))
    # Some clients report the failure first, and abort beside whatever comes next.
    deadline = time.monotonic() + ABORT_SECONDS
    while (left := turn.referee.uploads(turn.bucket)) and time.monotonic() < deadline:
        time.sleep(0.1)
    turn.referee.abort_all(turn.bucket)
    check(left == [], f"uploads are left: {left}")
    turn.expect_gone("give-up/a")


def sync(turn):
    """A tree goes up, changes, goes up again, and comes down as it is."""
    source, to = turn.folder / "tree", turn.folder / "down"
    lay_tree(source)
    turn.ask("sync_up", folder=str(source), prefix="sync/")
    (source / "f5").write_bytes(turn.files.content["large"])
    (source / "f6").unlink()
    turn.ask("sync_up", folder=str(source), prefix="sync/")
    expected = sorted(f"sync/{path.relative_to(source)}" for path in source.rglob("*") if path.is_file())
    found = sorted(turn.referee.keys(turn.bucket, "sync/"))
    check(found == expected, f"there is {_difference(found, expected)}")
    turn.ask("sync_down", prefix="sync/", to=str(to))
    same_trees(source, to)


def lay_tree(folder):
    """Thirty files of up to 29 KB, and one with an odd name."""
    numbers = random.Random(11)
    (folder / "d e").mkdir(parents=True)
    for number in range(30):
        (folder / f"f{number}").write_bytes(numbers.randbytes(1000 * number))
    (folder / "d e" / "a+b & c%20d \u00fc.txt").write_text("x")


def same_trees(one, other):
    expected, found = (
        {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (one, other))
    check(expected.keys() == found.keys(), f"files: {_difference(list(found), list(expected))}")
    changed = [name for name in expected if expected[name] != found[name]]
    check(not changed, f"other bytes in {changed}")


def presigned_get(turn):
    turn.lay("presigned/a b+%&\u00fc")
    url = turn.ask("presign_get", key="presigned/a b+%&\u00fc", seconds=300)["url"]
    status, content = _fetch(url)
    check(status == 200 and content == turn.files.content["small"], f"{status} and {len(content)} bytes")
    status, _ = _fetch(url.replace("presigned/", "presigned/x", 1))
    check(status == 403, f"the URL of another object is answered with {status}")


def presigned_put(turn):
    url = turn.ask("presign_put", key="presigned/put a+b", seconds=300)["url"]
    status, answer = _fetch(url, "PUT", turn.files.content["small"])
    check(status == 200, f"{status} {answer[:300]}")
    turn.expect("presigned/put a+b", "small")


# In the order of the table's columns.
STEPS = {
    "put": put_small, "large": put_large, "stream": put_stream, "get": get, "range": get_range, "head": head,
    "missing": missing, "list": list_pages, "folder": list_folder, "copy": copy,
    "copy if absent": copy_if_absent, "if absent": put_if_absent,
    "if match": put_if_match, "delete": delete, "odd keys": odd_names, "batch": delete_many, "batch some": delete_some,
    "multipart": multipart, "abort": abort, "give up": give_up, "sync": sync, "presigned get": presigned_get,
    "presigned put": presigned_put,
}

MEANING = {
    "put": "1,000 bytes, and none", "large": "20 MiB, as the client sends them by itself",
    "stream": "20 MiB out of a pipe, of unknown length", "get": "empty, small and large",
    "range": "the first byte, 3 MiB in the middle, the last seven", "head": "size and entity tag",
    "missing": "a key that is not there: the client's own error for that",
    "list": f"{LISTED:,} keys, a fifth of each kind with a space, `+`, `&` or `%`, in pages",
    "folder": "keys and folders of one level", "copy": "small with an odd key, and large",
    "copy if absent": "copy, and copy again: refused, unchanged",
    "if absent": "create, and create again: refused, unchanged",
    "if match": "with the current tag, and with the old one",
    "delete": "one object; its neighbour stays",
    "odd keys": f"put, get and list {len(ODD_NAMES)} keys that are odd: spaces, `%`, `+`, `&`, `//`, a slash at the "
                "end, XML, Unicode",
    "batch": "delete all of them at once; what looks like them stays",
    "batch some": "delete some by name in one call, one of them not there; what looks like them stays",
    "multipart": "parts of 5 MiB, told by the entity tag", "abort": "abort an upload that somebody else began",
    "give up": "the source fails in the middle: no object, and no upload left",
    "sync": "a tree of files up, changed, up again, and down",
    "presigned get": "by a client that knows no key, and with another path: refused",
    "presigned put": "by a client that knows no key",
}


def _odd_names(turn):
    """The names that the client can say, and why some are left out, if any are."""
    without, why = _without(turn, "why")
    unknown = set(without) - set(ODD_NAMES)
    check(not unknown, f"the driver leaves out what is not asked for: {unknown}")
    names = [name for name in ODD_NAMES if name not in without]
    return names, why and f"{len(names)} of {len(ODD_NAMES)}: {why}"


def _without(turn, reason):
    try:
        told = turn.ask("odd_names_without")
    except NotOffered:
        return [], None
    return told["names"], told.get(reason)


def _bare(etag):
    return etag.removeprefix("W/").strip('"')


def _difference(found, expected):
    return f"too much {sorted(set(found) - set(expected))}, too little {sorted(set(expected) - set(found))}"


def _fetch(url, method="GET", body=None):
    # Without a type urllib would add one of its own, which a client's signature may not allow.
    request = urllib.request.Request(url, body, {"Content-Type": ""} if body else {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
