"""A task of a coordinated job: checkpoints, restarts, and everything that gets lost on the way."""

from __future__ import annotations

import asyncio
import logging

import pytest
from esker import (
    Aborted,
    Client,
    Completed,
    Ended,
    JobEnded,
    KeyGroups,
    NotFound,
    Restart,
    State,
    StateRefused,
    Stopped,
    Subsumed,
    Worker,
)
from esker import events as events_module
from esker import worker as worker_module
from fake import Fake

ONE = [{"id": "count", "parallelism": 1, "max_parallelism": 8}]
TWO = [{"id": "count", "parallelism": 2, "max_parallelism": 8}]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(worker_module, "_ATTEMPT_PAUSE_SECONDS", 0.02)


async def job(fake, operators=ONE):
    async with Client(fake.address) as client:
        await client.create_job("job", operators=operators)


async def until(condition, seconds=10.0):
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to that")


def test_the_loop_of_the_readme(fake, go):
    async def run():
        await job(fake)
        state = b"0"
        async with Worker("job", "count", 0, address=fake.address) as w:
            assert (w.attempt, w.restored, w.parallelism, w.key_groups) == (1, None, 1, KeyGroups(0, 8))
            assert await w.restore() == []
            await w.start()
            first = fake.trigger("job")
            async for cp in w.checkpoints():
                state += b"1"
                assert await cp.put(state)
                if cp.number == first + 1:
                    break
                fake.trigger("job")
        assert fake.jobs["job"].ended == "FINISHED"

    go(run())
    states = [r[2] for r in fake.jobs["job"].reports]
    assert states[0] == "running" and states[-1] == "finished"
    assert sorted(fake.jobs["job"].completed) == [1, 2]


def test_state_comes_back_after_a_restart(fake, go):
    async def run():
        await job(fake)
        attempts = []

        async def work(w):
            parts = await w.restore()
            attempts.append((w.attempt, w.restored, [(p.kind, p.name, p.elements) for p in parts]))
            await w.start()
            if w.attempt == 3:
                return "done"
            fake.trigger("job")
            async for cp in w.checkpoints():
                await cp.put([
                    State.split([b"p0", b"", b"p2"], name="positions"),
                    State.keyed({3: b"three"}, w.key_groups, name="counts"),
                    State.broadcast(b"", name="rules"),
                ])
                fake.lose("job")

        assert await Worker("job", "count", 0, address=fake.address).run(work) == "done"
        return attempts

    attempts = go(run())
    assert [(a, c) for a, c, _ in attempts] == [(1, None), (2, 1), (3, 2)]
    assert attempts[0][2] == []
    for _, _, parts in attempts[1:]:
        assert parts == [
            ("split", "positions", (b"p0", b"", b"p2")),
            ("keyed", "counts", (b"", b"", b"", b"three", b"", b"", b"", b"")),
            ("broadcast", "rules", (b"",)),
        ]


@pytest.mark.parametrize("mode", ["auto", "poll"])
def test_all_that_happens_is_told_in_order(fake, go, mode):
    # Else the end may be missed by who polls, and is told without its state.
    fake.keeps_ended = True

    async def run():
        await job(fake)
        told = []
        async with Worker("job", "count", 0, address=fake.address, events=mode) as w:
            await w.start()
            fake.trigger("job")
            async for event in w.events():
                told.append(event)
                if getattr(event, "number", 0) == 1:
                    await event.put(b"x")
                if isinstance(event, Subsumed):
                    fake.abort("job", fake.trigger("job"))
                if isinstance(event, Aborted):
                    fake.on_loop(lambda: fake._end(fake.jobs["job"], "CANCELED"))
            assert not w.running and w.completed == 1
        return told

    told = go(run())
    # The second trigger may be taken before it is aborted, or not at all.
    assert [type(e).__name__ for e in told if getattr(e, "number", 1) == 1] == [
        "Checkpoint", "Completed", "Subsumed", "Aborted", "Ended"]
    assert told[1].metadata == "esker1:m" and told[-2].reason == "CHECKPOINT_EXPIRED"
    assert told[-1] == Ended("CANCELED", False)


def test_a_stream_that_is_cut_goes_on_behind_its_last_event(fake, go):
    async def run():
        await job(fake)
        async with Worker("job", "count", 0, address=fake.address) as w:
            await w.start()
            for _ in range(5):
                number = fake.trigger("job")
                cp = await w.next(5)
                assert cp.number == number
                await cp.put(b"x")
                fake.cut_streams()
                assert isinstance(await w.next(5), Completed)
                assert isinstance(await w.next(5), Subsumed)

    go(run())
    streams = [r for r in fake.requests if r.path.endswith("/events")]
    assert len(streams) > 1
    assert all("last-event-id" in r.headers for r in streams[1:])
    assert all(r.query["worker"] for r in streams)


def test_a_restart_of_the_daemon_is_survived_at_each_step(fake, go):
    async def run():
        await job(fake)
        async with Worker("job", "count", 0, address=fake.address) as w:
            await w.start()
            fake.restart(0.1)
            number = fake.trigger("job")
            cp = await w.next(10)
            assert cp.number == number
            # It is gone while the acknowledgement is on its way, and what it told last was not heard.
            fake.fault("POST", "/ack$", "lose answer")
            await asyncio.gather(cp.put(b"x"), asyncio.to_thread(fake.restart, 0.1))
            outcome = await asyncio.wait_for(cp.wait(), 10)
            assert isinstance(outcome, Completed) and outcome.checkpoint == number
            assert w.completed == number
            # One that was aborted while nobody listened.
            second = fake.trigger("job")
            cp = next_checkpoint = await w.next(10)
            while not hasattr(cp, "number"):
                cp = next_checkpoint = await w.next(10)
            assert next_checkpoint.number == second

            def abort_and_forget():
                fake._abort(fake.jobs["job"], second, "CHECKPOINT_EXPIRED")
                fake.jobs["job"].log.clear()
                fake.epoch = "other"

            fake.on_loop(abort_and_forget)
            fake.cut_streams()
            assert isinstance(await asyncio.wait_for(cp.wait(), 10), Aborted)
            assert cp.aborted and not await cp.put(b"late")

    go(run())
    assert fake.jobs["job"].attempt == 1


def test_a_pending_checkpoint_is_told_once_after_a_reconnect(fake, go):
    async def run():
        await job(fake)
        async with Worker("job", "count", 0, address=fake.address) as w:
            await w.start()
            number = fake.trigger("job")
            cp = await w.next(5)
            fake.restart()
            await until(lambda: fake.count("GET", "/events$") >= 2)
            assert await w.next(0.5) is None
            assert await cp.put(b"x")
            event = await w.next(5)
            assert isinstance(event, Completed) and event.checkpoint == number

    go(run())


def test_events_are_polled_for_if_no_stream_gets_through(fake, go, monkeypatch):
    monkeypatch.setattr(events_module, "HELLO_SECONDS", 0.2)
    fake.hold_streams = True

    async def run():
        await job(fake)
        async with Worker("job", "count", 0, address=fake.address) as w:
            await w.start()
            number = fake.trigger("job")
            cp = await w.next(10)
            assert cp.number == number
            fake.fault("GET", "/events$", "status", times=2)
            await cp.put(b"x")
            assert isinstance(await w.next(10), Completed)

    go(run())
    asked = [r for r in fake.requests if r.path.endswith("/events")]
    assert "text/event-stream" in asked[0].headers["accept"]
    assert all("accept" not in r.headers for r in asked[1:])
    assert any(r.query.get("after") and r.query.get("wait") == "20s" for r in asked)


def test_streams_that_fall_silent_again_and_again_are_given_up(fake, go, monkeypatch):
    monkeypatch.setattr(events_module, "SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(events_module, "_PAUSE_SECONDS_MIN", 0.01)

    async def run():
        await job(fake)
        async with Worker("job", "count", 0, address=fake.address) as w:
            await w.start()
            # The fake sends no heartbeats.
            await until(lambda: any("accept" not in r.headers for r in fake.requests if r.path.endswith("/events")))
            fake.trigger("job")
            assert (await w.next(10)).number == 1

    go(run())


def test_heartbeats_come_as_often_as_they_are_wanted(fake, go):
    async def run():
        await job(fake)
        async with Worker("job", "count", 0, address=fake.address, name="host:1") as w:
            await asyncio.sleep(0.5)
            assert not fake.jobs["job"].reports
            await w.start()
            await until(lambda: len(fake.jobs["job"].reports) >= 4, 3.0)
            await w.end_of_data()
            await until(lambda: fake.jobs["job"].reports.count(("count", 0, "end-of-data")) >= 2)

    go(run())
    asked = [r.json() for r in fake.requests if r.path.endswith("/tasks")]
    assert {r["worker"] for r in asked} == {"host:1"}


def test_a_heartbeat_on_its_way_does_not_take_back_what_is_said_after_it(fake, go):
    async def run():
        await job(fake, TWO)
        async with Worker("job", "count", 0, address=fake.address) as w:
            await w.start()
            # The next heartbeat is answered late, and sent again.
            fake.fault("POST", "/tasks$", "lose answer", times=2)
            sent = fake.count("POST", "/tasks$")
            await until(lambda: fake.count("POST", "/tasks$") > sent)
            await w.end_of_data()
            states = [state for _, _, state in fake.jobs["job"].reports]
            assert states == sorted(states, key=["running", "end-of-data"].index)

    go(run())


def test_a_heartbeat_that_is_answered_with_another_attempt_restarts_the_worker(fake, go):
    fake.hold_streams = True

    async def run():
        await job(fake)
        async with Worker("job", "count", 0, address=fake.address, events="stream") as w:
            await w.start()
            fake.lose("job")
            with pytest.raises(Restart) as caught:
                await w.next(10)
            raise caught.value

    with pytest.raises(Restart) as caught:
        go(run())
    assert caught.value.cause == "ATTEMPT"
    assert ("count", 0, "failed") not in fake.jobs["job"].reports


def test_a_restart_is_told_to_whoever_asks_the_worker(fake, go):
    async def run():
        await job(fake, TWO)
        async with Worker("job", "count", 0, address=fake.address) as w, Worker("job", "count", 1, address=fake.address) as other:
            await w.start()
            await other.start()
            fake.trigger("job")
            cp = await w.next(5)
            waiting = asyncio.create_task(cp.wait())
            await asyncio.sleep(0)
            fake.lose("job", "TASK_LOST")
            with pytest.raises(Restart) as caught:
                await waiting
            assert (caught.value.attempt, caught.value.checkpoint, caught.value.cause) == (2, None, "TASK_LOST")
            for ask in (w.poll, w.start, w.end_of_data, w.finish, w.restore, w.next, lambda: cp.put(b"x")):
                with pytest.raises(Restart):
                    result = ask()
                    await result
            raise caught.value

    with pytest.raises(Restart):
        go(run())
    assert ("count", 0, "failed") not in fake.jobs["job"].reports


def test_an_exception_fails_the_task_and_the_job_restarts(fake, go):
    async def run():
        await job(fake)
        async with Worker("job", "count", 0, address=fake.address) as w:
            await w.start()
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk"):
        go(run())
    assert fake.jobs["job"].failures == ["RuntimeError: the disk is full"]
    assert fake.jobs["job"].attempt == 2


def test_a_cancelled_worker_says_that_it_is_gone(fake, go):
    async def run():
        await job(fake)

        async def work(w):
            async for _ in w.checkpoints():
                pass

        task = asyncio.create_task(Worker("job", "count", 0, address=fake.address).run(work))
        await until(lambda: fake.jobs["job"].reports)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    go(run())
    assert len(fake.jobs["job"].failures) == 1


def test_a_new_process_takes_the_place_of_one_that_is_gone(fake, go):
    async def run():
        await job(fake)
        async with Worker("job", "count", 0, address=fake.address) as gone:
            await gone.start()
            fake.trigger("job")
            await (await gone.next(5)).put(b"one")
            await until(lambda: fake.jobs["job"].completed)
            # To go on in the same attempt from an older state would count twice what the other tasks have.
            async with Worker("job", "count", 0, address=fake.address) as w:
                assert (w.attempt, w.restored) == (2, 1)
                assert [part.elements for part in await w.restore()] == [(b"one",)]
            with pytest.raises(Restart):
                await gone.next(5)

    with pytest.raises(Restart):
        go(run())
    assert "takes the place" in fake.jobs["job"].failures[0]


def test_work_that_a_restart_interrupts_is_cancelled_and_done_again(fake, go):
    async def run():
        await job(fake)
        attempts = []

        async def work(w):
            attempts.append(w.attempt)
            await w.start()
            if w.attempt == 1:
                asyncio.get_running_loop().call_later(0.1, lambda: asyncio.ensure_future(asyncio.to_thread(fake.lose, "job")))
                await asyncio.sleep(3600)
            if w.attempt == 2:
                await asyncio.to_thread(fake.lose, "job")
                await until(lambda: w.restart is not None)
                raise OSError("the peer hung up")

        await Worker("job", "count", 0, address=fake.address).run(work)
        return attempts

    assert go(run()) == [1, 2, 3]
    assert fake.jobs["job"].failures == []


def test_a_job_that_ends_while_it_restarts_has_no_next_attempt(fake, go):
    async def run():
        await job(fake)

        async def work(w):
            await w.start()
            # The end is told before the state is.
            fake.fault("GET", "/state$", "status", times=4)
            fake.on_loop(lambda: (fake._restart_job(fake.jobs["job"], "RESTORE", ""), fake._end(fake.jobs["job"], "CANCELED")))
            await asyncio.sleep(3600)

        await Worker("job", "count", 0, address=fake.address).run(work)

    with pytest.raises(JobEnded) as caught:
        go(run())
    assert caught.value.state == "CANCELED"


def test_stop_with_a_savepoint(fake, go):
    async def run():
        await job(fake)
        async with Client(fake.address) as client, Worker("job", "count", 0, client=client) as w:
            await w.start()
            stopping = asyncio.create_task(client.stop("job", drain=True))
            told = []
            async for event in w.events():
                told.append(event)
                if hasattr(event, "number"):
                    assert event.stop == "drain" and event.is_savepoint
                    await event.put(b"last")
                    assert isinstance(await event.wait(), Completed)
            assert (await stopping)["path"] == "s3://b/savepoint"
            return told

    told = go(run())
    assert told[-1] == Stopped(1, "s3://b/savepoint", True)
    assert fake.jobs["job"].reports[-1] == ("count", 0, "finished")


@pytest.mark.parametrize("completes", [True, False])
@pytest.mark.parametrize("stop", [None, "suspend"])
def test_what_became_of_a_savepoint_is_looked_up_if_it_was_missed(fake, go, stop, completes):
    async def run():
        await job(fake)
        async with Worker("job", "count", 0, address=fake.address) as w:
            await w.start()
            number = fake.trigger("job", "savepoint", stop=stop)
            cp = await w.next(5)

            def miss():
                fake.epoch = "other"
                for writer in list(fake._writers):
                    writer.transport.abort()
                if completes:
                    fake.jobs["job"].completed[number] = fake.jobs["job"].pending.pop(number).acks
                else:
                    fake.jobs["job"].pending.pop(number)
                    fake.jobs["job"].aborted.add(number)

            fake.on_loop(miss)
            outcome = await asyncio.wait_for(cp.wait(), 10)
            assert isinstance(outcome, Completed if completes else Aborted) and outcome.kind == "savepoint"
            assert w.running == (stop is None or not completes)

    go(run())


def test_a_savepoint_that_completes_is_waited_for_though_nothing_is_told(fake, go):
    async def run():
        await job(fake)
        async with Worker("job", "count", 0, address=fake.address) as w:
            await w.start()
            fake.trigger("job", "savepoint")
            cp = await w.next(5)
            await cp.put(b"x")
            assert isinstance(await asyncio.wait_for(cp.wait(), 10), Completed)

    go(run())


def test_end_of_data_waits_for_the_last_checkpoint(fake, go):
    async def run():
        await job(fake, TWO)

        async def work(w):
            await w.end_of_data()
            async for cp in w.checkpoints():
                await cp.put(b"final")
                assert isinstance(await cp.wait(), Completed)
                return

        await asyncio.gather(*(Worker("job", "count", n, address=fake.address).run(work) for n in range(2)))

    go(run())
    assert fake.jobs["job"].ended == "FINISHED" and sorted(fake.jobs["job"].completed) == [1]


def test_a_late_acknowledgement_does_not_count_and_is_no_error(fake, go):
    async def run():
        await job(fake, TWO)
        async with Worker("job", "count", 0, address=fake.address) as w, Worker("job", "count", 1, address=fake.address) as other:
            await w.start()
            await other.start()
            number = fake.trigger("job")
            cp = await w.next(5)
            # The abort itself is not heard in time.
            fake.on_loop(lambda: fake.jobs["job"].pending.pop(number))
            acknowledged = await cp.put(b"x")
            assert not acknowledged and "CHECKPOINT_EXPIRED" in acknowledged.reason
            # A large state is refused before the acknowledgement is sent.
            number = fake.trigger("job")
            cp = await w.next(5)
            fake.on_loop(lambda: (fake.jobs["job"].pending.pop(number), fake.jobs["job"].aborted.add(number)))
            assert not await cp.put(bytes(5 << 20))

    go(run())


def test_a_declined_checkpoint_is_aborted(fake, go):
    async def run():
        await job(fake)
        async with Worker("job", "count", 0, address=fake.address) as w:
            await w.start()
            fake.trigger("job")
            cp = await w.next(5)
            await cp.decline("IO_EXCEPTION", "no space")
            outcome = await cp.wait()
            assert isinstance(outcome, Aborted) and outcome.reason == "IO_EXCEPTION"

    go(run())


def test_large_states_are_stored_before_and_small_ones_go_with_the_acknowledgement(fake, go):
    async def run():
        await job(fake)
        async with Worker("job", "count", 0, address=fake.address) as w:
            await w.start()
            fake.trigger("job")
            cp = await w.next(5)
            states = [State.split(bytes(3 << 20), name="a"), State.split(b"small", name="b"), State.split(bytes(2 << 20), name="c")]
            fake.fault("POST", "/segments$", "lose answer")
            acknowledged = await cp.put(states)
            assert acknowledged and all(state.segment for state in acknowledged.states)
            fake.lose("job")
            with pytest.raises(Restart):
                await w.next(5)
                await w.next(5)
                await w.next(5)
            await w.begin_attempt()
            parts = await w.restore()
            assert [(p.name, len(p.elements[0])) for p in parts] == [("a", 3 << 20), ("b", 5), ("c", 2 << 20)]

    go(run())
    assert len(fake.segments) == 3
    put = [r for r in fake.requests if r.path.endswith("/segments")]
    assert {r.query["name"] for r in put} == {"a"} and {r.query["parallelism"] for r in put} == {"1"}


def test_a_state_with_many_offsets_does_not_make_a_head_that_is_refused(fake, go):
    async def run():
        await job(fake, [{"id": "count", "parallelism": 1, "max_parallelism": 32768}])
        async with Worker("job", "count", 0, address=fake.address) as w:
            await w.start()
            fake.trigger("job")
            cp = await w.next(5)
            assert await cp.put(State.keyed({32767: b"x", 1: b"y"}, w.key_groups))

    go(run())
    ack = next(r for r in fake.requests if r.path.endswith("/ack"))
    assert ack.headers["content-type"] == "application/json"


def test_a_state_whose_segment_was_not_told_is_stored_again(fake, go):
    async def run():
        await job(fake)
        async with Worker("job", "count", 0, address=fake.address) as w:
            await w.start()
            fake.trigger("job")
            cp = await w.next(5)
            fake.fault("POST", "/ack$", "lose answer")
            acknowledged = await cp.put([State.split([b"base"], scope="shared"), State.split([b"more"])])
            assert acknowledged and [state.len for state in acknowledged.states] == [4, 4]
            fake.trigger("job")
            while not hasattr(cp := await w.next(5), "number"):
                pass
            assert (await cp.put(acknowledged.states[0])).states[0].segment

    go(run())
    assert [data for _, data in fake.segments.values()] == [b"base", b"more", b"base"]


def test_shared_states_are_given_again(fake, go):
    async def run():
        await job(fake)
        async with Worker("job", "count", 0, address=fake.address) as w:
            await w.start()
            fake.trigger("job")
            cp = await w.next(5)
            base = (await cp.put(State.split([b"base"], name="sst", scope="shared"))).states[0]
            assert isinstance(await cp.wait(), Completed)
            fake.trigger("job")
            while not hasattr(cp := await w.next(5), "number"):
                pass
            assert cp.trigger.incremental
            assert await cp.put([base, State.split([b"delta"], name="delta")])
            fake.segments.pop(base.segment)
            fake.trigger("job")
            while not hasattr(cp := await w.next(5), "number"):
                pass
            with pytest.raises(StateRefused, match=base.segment):
                await cp.put([base])
            assert await cp.put([State.split([b"base"], name="sst", scope="shared")])

    go(run())
    assert [data for _, data in fake.segments.values()] == [b"delta", b"base"]


@pytest.mark.parametrize("parallelism", [1, 2, 5])
def test_rescaling_deals_out_key_groups_and_elements(fake, go, parallelism):
    async def run():
        await job(fake, [{"id": "count", "parallelism": 3, "max_parallelism": 16}])

        async def first(w):
            fake_state = [
                State.keyed({g: b"g%d" % g for g in range(w.key_groups.start, w.key_groups.end)}, w.key_groups, name="k"),
                State.split([b"e%d.%d" % (w.subtask, n) for n in range(3)], name="s"),
            ]
            await w.start()
            async for cp in w.checkpoints():
                await cp.put(fake_state)

        tasks = [asyncio.create_task(Worker("job", "count", n, address=fake.address).run(first)) for n in range(3)]
        await until(lambda: fake.jobs["job"].running)
        fake.trigger("job")
        await until(lambda: fake.jobs["job"].completed)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

        async with Client(fake.address) as client:
            operators = [{"id": "count", "parallelism": parallelism, "max_parallelism": 16}]
            assert len(await client.restore_job("job", operators=operators)) == parallelism
            groups, elements = {}, []
            for n in range(parallelism):
                async with Worker("job", "count", n, client=client) as w:
                    for part in await w.restore():
                        if part.kind == "keyed":
                            assert all(group in w.key_groups for group in part.groups())
                            groups.update(part.groups())
                        else:
                            elements.extend(part.elements)
            return groups, elements

    groups, elements = go(run())
    assert groups == {g: b"g%d" % g for g in range(16)}
    assert sorted(elements) == [b"e%d.%d" % (t, n) for t in range(3) for n in range(3)]


def test_a_small_part_of_a_large_segment_is_read_as_a_range(fake, go):
    async def run():
        await job(fake, TWO)
        fake.jobs["job"].operators[0]["parallelism"] = 1
        async with Worker("job", "count", 0, address=fake.address) as w:
            await w.start()
            fake.trigger("job")
            cp = await w.next(5)
            await cp.put(State.split([bytes([n]) * (1 << 19) for n in range(4)]))
            await until(lambda: fake.jobs["job"].completed)
            await w.client.restore_job("job", operators=[{"id": "count", "parallelism": 4}])
            await until(lambda: w.restart)
            with pytest.raises(Restart):
                await w.finish()
            raise w.restart

    async def read_all():
        async with Client(fake.address) as client:
            read = []
            for n in range(4):
                async with Worker("job", "count", n, client=client) as w:
                    read += [part.elements for part in await w.restore()]
        return read

    with pytest.raises(Restart):
        go(run())
    assert go(read_all()) == [(bytes([n]) * (1 << 19),) for n in range(4)]
    assert fake.count("POST", "^/v1/restore$") == 0


def test_a_worker_of_a_job_that_has_ended_is_told(fake, go):
    async def run():
        await job(fake)
        fake.keeps_ended = True
        async with Client(fake.address) as client:
            await client.end_job("job", "CANCELED")
        async with Worker("job", "count", 0, address=fake.address):
            pass

    with pytest.raises(JobEnded, match="CANCELED"):
        go(run())


@pytest.mark.parametrize("mode", ["stream", "poll"])
def test_an_end_that_was_missed_ends_all_that_a_worker_does(fake, go, mode):
    async def run():
        await job(fake)
        async with Worker("job", "count", 0, address=fake.address, events=mode) as w:
            await w.start()
            fake.trigger("job")
            cp = await w.next(5)

            def forget():
                for writer in list(fake._writers):
                    writer.transport.abort()
                fake.jobs["job"].ended = "CANCELED"

            fake.on_loop(forget)
            assert not await cp.put(b"late")
            assert [event async for event in w.events()] == [Ended(None, False)]
            assert isinstance(await cp.wait(), Aborted)
            await w.end()

    go(run())


def test_a_worker_of_a_job_that_is_not_there_is_told(fake, go):
    async def run():
        async with Worker("job", "count", 0, address=fake.address):
            pass

    with pytest.raises(NotFound, match="job"):
        go(run())


def test_a_job_that_is_forgotten_while_its_worker_runs_is_told(fake, go):
    async def run():
        await job(fake)
        async with Worker("job", "count", 0, address=fake.address) as w:
            await w.start()
            fake.jobs.clear()
            # Its end is not told to who was not there.
            fake.cut_streams()
            assert await w.next(10) == Ended(None, False)
            assert not w.running

    go(run())


def test_poll_does_not_wait_and_wants_a_start(fake, go):
    async def run():
        await job(fake)
        async with Worker("job", "count", 0, address=fake.address) as w:
            with pytest.raises(RuntimeError, match="start"):
                w.poll()
            await w.start()
            assert w.poll() is None
            fake.trigger("job")
            while (cp := w.poll()) is None:
                await asyncio.sleep(0.01)
            await cp.put(b"x")

    go(run())


def test_a_checkpoint_that_was_aborted_before_anybody_looked_is_left_out(fake, go):
    async def run():
        await job(fake)
        async with Worker("job", "count", 0, address=fake.address) as w:
            await w.start()
            await until(lambda: fake.count("GET", "/events$"))
            fake.abort("job", fake.trigger("job"))
            await until(lambda: len(w._told.waiting) == 2)
            assert isinstance(await w.next(1), Aborted)

    go(run())


def test_nothing_is_left_behind(fake, go, caplog):
    async def run():
        await job(fake)
        async with Worker("job", "count", 0, address=fake.address) as w:
            await w.start()
        await asyncio.sleep(0.05)
        return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    with caplog.at_level(logging.WARNING):
        left = go(run())
    # `wait_for` runs the test in a task of its own.
    assert len(left) <= 1
    assert not caplog.records


def test_random_faults_lose_nothing_and_count_nothing_twice(go):
    import random

    chance = random.Random(11)
    with Fake(heartbeat_ms=50, interval_s=0.02) as fake:

        async def disturb():
            for _ in range(150):
                await asyncio.sleep(0.02)
                what = chance.choice(["close", "lose answer", "status", "cut", "streams", "daemon", "task"])
                if what == "streams":
                    fake.cut_streams()
                elif what == "daemon" and chance.random() < 0.3:
                    await asyncio.to_thread(fake.restart, 0.05)
                elif what == "task" and chance.random() < 0.1:
                    await asyncio.to_thread(fake.lose, "job")
                else:
                    path = chance.choice(["/ack$", "/tasks$", "/state$", "^/v1/restore$", "/events$"])
                    method = "GET" if path in ("/state$", "/events$") else "POST"
                    fake.faults = [fault for fault in fake.faults if fault.times > 0]
                    if len(fake.faults) < 3:
                        fake.fault(method, path, what if what != "daemon" and what != "task" else "close", at=10)

        async def work(w):
            position = total = 0
            for part in await w.restore():
                position, total = (int(x) for x in part.elements[0].split())
            await w.start()
            while position < 400 or not disturbing[0].done():
                position += 1
                total += position
                await asyncio.sleep(0.005)
                event = w.poll()
                if hasattr(event, "number"):
                    await event.put(b"%d %d" % (position, total))
            await w.end_of_data()
            async for cp in w.checkpoints():
                if await cp.put(b"%d %d" % (position, total)) and isinstance(await cp.wait(), Completed):
                    return position, total

        async def run():
            await job(fake, TWO)
            disturbing.append(asyncio.create_task(disturb()))
            try:
                return await asyncio.gather(*(Worker("job", "count", n, address=fake.address).run(work) for n in range(2)))
            finally:
                disturbing[0].cancel()

        disturbing = []
        for position, total in go(run()):
            assert position >= 400 and total == position * (position + 1) // 2
        assert fake.jobs["job"].attempt > 1
