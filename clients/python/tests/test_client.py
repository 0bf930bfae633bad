"""The client's requests, and what it makes of everything that goes wrong on their way."""

from __future__ import annotations

import asyncio
import time

import pytest
from esker import (
    AddressError,
    AttemptOver,
    BadAnswer,
    CheckpointOver,
    ChecksumMismatch,
    Client,
    Conflict,
    ConnectionLost,
    InvalidRequest,
    KeyGroups,
    NotFound,
    RequestFailed,
    State,
    StateRefused,
    Unauthorized,
    Unavailable,
)

OPERATORS = [{"id": "count", "parallelism": 2}]


@pytest.mark.parametrize("good", ["http://127.0.0.1:9001/", "http://[::1]:1", "http://host", "unix:/run/esker.sock", "https://host"])
def test_addresses_that_are_understood(good):
    assert Client(good).address.rstrip("/") == good.rstrip("/")


@pytest.mark.parametrize("bad", ["127.0.0.1:9001", "http://", "ftp://host", "http://a b", "http://h:x", "unix:", "http://h/p", "http://u@h"])
def test_addresses_that_nobody_can_connect_to_are_refused(bad):
    with pytest.raises(AddressError, match="address"):
        Client(bad)


def test_put_and_get(fake, go):
    async def run():
        async with Client(fake.address) as client:
            await client.create_job("a/b ü")
            small = await client.put("a/b ü", b"x" * 1000, checkpoint=1, name="n&=ü", operator="o", subtask=0, parallelism=1)
            large = await client.put("a/b ü", bytes(range(256)) * 12_000, checkpoint=1)
            assert await client.get(small.segment) == b"x" * 1000
            assert await client.get(large.handle) == bytes(range(256)) * 12_000
            assert await client.get_range(large.segment, 256, 258) == b"\x00\x01"
            read = [pair async for pair in client.read([large.segment, small.segment])]
            assert [len(data) for _, data in read] == [3_072_000, 1000]

    go(run())
    put = next(r for r in fake.requests if r.path.endswith("/segments"))
    assert put.path == "/v1/jobs/a%2Fb%20%C3%BC/segments"
    assert put.query == {"checkpoint": "1", "scope": "exclusive", "name": "n&=ü", "operator": "o", "subtask": "0", "parallelism": "1"}


@pytest.mark.parametrize("what", ["close", "lose answer", "cut", "cut chunks"])
def test_a_put_whose_answer_is_lost_is_repeated_and_stored_once(fake, go, what):
    fault = fake.fault("POST", "/segments$", what, times=3, at=5)

    async def run():
        async with Client(fake.address) as client:
            await client.create_job("job")
            segment = await client.put("job", b"state", checkpoint=1)
            assert await client.get(segment.segment) == b"state"

    go(run())
    assert fault.times == 0
    assert len(fake.segments) == 1


def test_a_batch_whose_answer_is_lost_is_stored_once(fake, go):
    fake.fault("POST", "/batch$", "lose answer", times=2)

    async def run():
        async with Client(fake.address) as client:
            await client.create_job("job")
            return await client.put_many("job", [({"checkpoint": 1, "name": "a", "scope": "shared"}, b"one"), ({"checkpoint": 1}, b"twelve")])

    stored = go(run())
    assert [segment.len for segment in stored] == [3, 6]
    assert len(fake.segments) == 2


@pytest.mark.parametrize("status", [503, 421, 502, 504, 429])
def test_what_is_refused_for_now_is_repeated(fake, go, status):
    fake.fault("GET", "^/v1/jobs$", "status", status=status, times=2)

    async def run():
        async with Client(fake.address) as client:
            return await client.jobs()

    assert go(run()) == []
    assert fake.count("GET", "^/v1/jobs$") == 3


def test_retry_after_is_waited_for(fake, go):
    fake.fault("GET", "^/v1/jobs$", "status", retry_after="1")
    begun = time.monotonic()

    async def run():
        async with Client(fake.address) as client:
            await client.jobs()

    go(run())
    assert time.monotonic() - begun >= 1.0


def test_patience_ends_with_the_last_error(fake, go):
    fake.fault("GET", "^/v1/jobs$", "status", times=1000)

    async def run():
        async with Client(fake.address, patience=0.3) as client:
            await client.jobs()

    with pytest.raises(Unavailable) as caught:
        go(run())
    assert caught.value.status == 503
    assert "GET /v1/jobs" in str(caught.value)


def test_a_retry_after_beyond_patience_is_not_waited_for(fake, go):
    fake.fault("GET", "^/v1/jobs$", "status", retry_after="50", times=1000)
    begun = time.monotonic()

    async def run():
        async with Client(fake.address, patience=1.0) as client:
            await client.jobs()

    with pytest.raises(Unavailable) as caught:
        go(run())
    assert caught.value.retry_after == 50.0
    assert time.monotonic() - begun < 10


def test_a_daemon_that_is_not_there_is_named(fake, go):
    async def run():
        async with Client("http://127.0.0.1:1", patience=0.1) as client:
            await client.jobs()

    with pytest.raises(ConnectionLost, match="http://127.0.0.1:1"):
        go(run())


def test_kept_connections_that_the_daemon_has_closed_cost_no_failure(fake, go):
    async def run():
        async with Client(fake.address, patience=0.0) as client:
            await client.jobs()
            fake.restart()
            await client.jobs()

    go(run())


def test_a_silent_daemon_is_given_up_after_the_timeout(fake, go):
    fake.fault("GET", "^/v1/jobs$", "silence")

    async def run():
        async with Client(fake.address, timeout=0.2) as client:
            return await client.jobs()

    assert go(run()) == []
    assert fake.count("GET", "^/v1/jobs$") == 2


def test_a_slow_body_is_not_a_silent_one(fake, go):
    async def run():
        async with Client(fake.address, timeout=0.15) as client:
            await client.create_job("job")
            segment = await client.put("job", b"x" * 1000, checkpoint=1)
            # All of it takes longer than the timeout, each piece less.
            fake.fault("GET", "/segments/", "slow")
            assert await client.get(segment.segment) == b"x" * 1000

    go(run())
    assert fake.count("GET", "/segments/") == 1


def test_chunked_answers_are_put_together(fake, go):
    async def run():
        async with Client(fake.address) as client:
            await client.create_job("job")
            segment = await client.put("job", b"0123456789" * 5, checkpoint=1)
            fake.fault("GET", "/segments/", "chunks", times=2)
            assert await client.get(segment.segment) == b"0123456789" * 5
            assert await client.get(segment.segment) == b"0123456789" * 5

    go(run())


def test_bytes_that_changed_on_their_way_are_read_again(fake, go):
    async def run():
        async with Client(fake.address) as client:
            await client.create_job("job")
            segment = await client.put("job", b"state", checkpoint=1)
            fault = fake.fault("GET", "/segments/", "corrupt", at=2)
            assert await client.get(segment.segment) == b"state"
            assert fault.times == 0

    go(run())


def test_bytes_that_stay_wrong_are_told(fake, go):
    async def run():
        async with Client(fake.address, patience=0.2) as client:
            await client.create_job("job")
            segment = await client.put("job", b"state", checkpoint=1)
            fake.fault("GET", "/segments/", "corrupt", at=2, times=100)
            await client.get(segment.segment)

    with pytest.raises(ChecksumMismatch) as caught:
        go(run())
    assert caught.value.announced != caught.value.actual


@pytest.mark.parametrize("what, at", [("cut", 40), ("cut", 700), ("cut chunks", 900), ("corrupt", 420), ("close", 0)])
def test_a_restore_that_breaks_off_goes_on_where_it_was(fake, go, what, at):
    async def run():
        async with Client(fake.address) as client:
            await client.create_job("job")
            stored = [await client.put("job", bytes([n]) * 100, checkpoint=1) for n in range(5)]
            fault = fake.fault("POST", "^/v1/restore$", what, at=at)
            read = [pair async for pair in client.read([segment.segment for segment in stored])]
            assert read == [(segment.segment, bytes([n]) * 100) for n, segment in enumerate(stored)]
            assert fault.times == 0

    go(run())
    asked = [len(r.json()["segments"]) for r in fake.requests if r.path == "/v1/restore"]
    assert len(asked) == 2 and asked[0] == 5 and asked[1] == (5 if at < 300 else asked[1]) and asked[1] >= 1
    assert at < 600 or asked[1] < 5


def test_a_segment_that_is_gone_is_told_at_once(fake, go):
    async def run():
        async with Client(fake.address) as client:
            return [pair async for pair in client.read(["01J404"])]

    with pytest.raises(NotFound) as caught:
        go(run())
    assert caught.value.field == "segments"
    assert fake.count("POST", "^/v1/restore$") == 1


def test_errors_name_field_and_reason(fake, go):
    async def run():
        async with Client(fake.address) as client:
            await client.create_job("job", operators=OPERATORS)
            await client.create_job("job", operators=OPERATORS)
            await client.create_job("job", operators=[{"id": "other", "parallelism": 1}])

    with pytest.raises(Conflict) as caught:
        go(run())
    error = caught.value
    assert (error.status, error.kind, error.field, error.request_id) == (409, "conflict", "operators", "r-1")
    assert "field operators: job job exists with other operators" in str(error)


@pytest.mark.parametrize("status, kind", [(400, InvalidRequest), (401, Unauthorized), (403, Unauthorized), (413, InvalidRequest)])
def test_what_no_repeat_would_cure_is_not_repeated(fake, go, status, kind):
    fake.fault("GET", "^/v1/jobs$", "status", status=status)

    async def run():
        async with Client(fake.address) as client:
            await client.jobs()

    with pytest.raises(kind, match="a proxy's words"):
        go(run())
    assert fake.count("GET", "^/v1/jobs$") == 1


def test_a_refusal_before_the_body_was_read_is_told(fake, go):
    fake.fault("POST", "/segments$", "answer early", status=413)

    async def run():
        async with Client(fake.address) as client:
            await client.create_job("job")
            await client.put("job", bytes(64 << 20), checkpoint=1)

    with pytest.raises(InvalidRequest) as caught:
        go(run())
    assert caught.value.status == 413


def test_the_token_goes_with_every_request(fake, go, monkeypatch):
    monkeypatch.setenv("ESKER_TOKEN", "secret")
    monkeypatch.setenv("ESKER_API", fake.address)

    async def run():
        async with Client() as client:
            await client.jobs()

    go(run())
    assert fake.requests[-1].headers["authorization"] == "Bearer secret"


def test_a_token_with_a_line_break_is_refused(fake, go):
    async def run():
        async with Client(fake.address, token="a\r\nb: c") as client:
            await client.jobs()

    with pytest.raises(ValueError, match="authorization"):
        go(run())
    assert not fake.requests


def test_cancelling_closes_the_connection_and_the_client_goes_on(fake, go):
    fake.fault("GET", "^/v1/jobs$", "silence")

    async def run():
        async with Client(fake.address) as client:
            asking = asyncio.create_task(client.jobs())
            while not fake.requests:
                await asyncio.sleep(0.01)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert await client.jobs() == []

    go(run())


def test_answers_that_are_not_the_daemons_are_told(go):
    async def answer(reader, writer):
        await reader.readline()
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
        await writer.drain()

    async def run():
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
            await client.jobs()

    with pytest.raises(BadAnswer, match="SSH-2.0"):
        go(run())


def test_an_acknowledgement_after_a_lost_answer_counts_once(fake, go):
    async def run():
        async with Client(fake.address) as client:
            await client.create_job("job", operators=[{"id": "count", "parallelism": 1}])
            number = fake.trigger("job")
            fake.fault("POST", "/ack$", "lose answer", times=2)
            states = [State.split([b"a", b"bc"]), State.keyed({1: b"k"}, KeyGroups(0, 4), name="c", scope="shared")]
            answer = await client.acknowledge("job", number, "count", 0, 1, states)
            assert answer["state"] == "completed"
            assert "segments" not in answer

    go(run())
    assert len(fake.segments) == 2
    written = fake.jobs["job"].completed[1][("count", 0)]["state"]
    assert [(e["kind"], e["offsets"]) for e in written] == [("split", [0, 1]), ("keyed", [0, 0, 1, 1])]
    assert written[1]["key_groups"] == {"start": 0, "end": 4}


def test_late_acknowledgements_are_told_by_their_field(fake, go):
    async def run(call, kind):
        async with Client(fake.address) as client:
            with pytest.raises(kind):
                await call(client)

    async def prepare():
        async with Client(fake.address) as client:
            await client.create_job("job", operators=OPERATORS)

    go(prepare())
    number = fake.trigger("job")
    go(run(lambda c: c.acknowledge("job", number, "count", 0, 2), AttemptOver))
    unknown = State("split", "", [0], segment="01J404")
    go(run(lambda c: c.acknowledge("job", number, "count", 0, 1, [unknown]), StateRefused))
    fake.abort("job", number)
    go(run(lambda c: c.acknowledge("job", number, "count", 0, 1), CheckpointOver))
    go(run(lambda c: c.decline("job", number, "count", 0, 2), AttemptOver))


def test_a_savepoint_is_waited_for_with_one_request_id(fake, go):
    async def run():
        async with Client(fake.address) as client:
            await client.create_job("job", operators=[{"id": "count", "parallelism": 1}])
            fake.fault("POST", "savepoints:trigger", "lose answer")
            waiting = asyncio.create_task(client.trigger_savepoint("job", "s3://b/p"))
            while fake.count("POST", "savepoints:trigger") < 4:
                await asyncio.sleep(0.01)
            await client.acknowledge("job", 1, "count", 0, 1)
            return await waiting

    answer = go(run())
    assert (answer["state"], answer["path"]) == ("completed", "s3://b/savepoint")
    asked = [r for r in fake.requests if r.path.endswith("savepoints:trigger")]
    assert len({r.headers["idempotency-key"] for r in asked}) == 1
    assert fake.jobs["job"].next_number == 2


def test_a_savepoint_that_fails_says_why(fake, go):
    async def run():
        async with Client(fake.address) as client:
            await client.create_job("job", operators=OPERATORS)
            waiting = asyncio.create_task(client.trigger_savepoint("job"))
            while not fake.jobs["job"].pending:
                await asyncio.sleep(0.01)
            fake.abort("job", 1, "CHECKPOINT_DECLINED")
            await waiting

    with pytest.raises(RequestFailed) as caught:
        go(run())
    assert caught.value.reason == "CHECKPOINT_DECLINED"


def test_a_savepoint_that_takes_too_long_is_told_as_pending(fake, go):
    async def run():
        async with Client(fake.address) as client:
            await client.create_job("job", operators=OPERATORS)
            return await client.trigger_savepoint("job", timeout=0.3)

    assert go(run())["state"] == "pending"


def test_states_without_bytes():
    assert State.split([b"", b""]).entry(0) == {"kind": "split", "name": "", "offsets": [0, 0], "end": 0, "part": 0}
    assert not State.keyed({1: b""}, KeyGroups(0, 2)).data
    with pytest.raises(ValueError, match="groups: 7"):
        State.keyed({7: b"x"}, KeyGroups(0, 2))
    with pytest.raises(ValueError, match="kind"):
        State("other", "", [0])
    with pytest.raises(TypeError, match="str"):
        State.split(["text"])  # type: ignore[list-item]
