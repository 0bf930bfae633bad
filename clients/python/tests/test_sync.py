"""The client and the worker for threads."""

from __future__ import annotations

import inspect
import os
import threading

import pytest
from esker import Aborted, Client as AsyncClient, Completed, Ended, NotFound, Restart, State
from esker import sync
from esker.sync import Checkpoint, Client, Worker

ONE = [{"id": "count", "parallelism": 1, "max_parallelism": 8}]


def test_a_client_has_all_methods_of_the_other_one():
    def public(of):
        return {name for name in vars(of) if not name.startswith("_")}

    # What is not for threads: how requests are sent, and events as they arrive.
    missing = public(AsyncClient) - public(Client)
    assert missing == {"aclose", "open", "call", "events"}
    assert Client.put.__doc__ == AsyncClient.put.__doc__
    assert list(inspect.signature(Client.put).parameters)[:3] == ["self", "job", "data"]


def test_put_and_get(fake):
    with Client(fake.address) as client:
        client.create_job("job")
        segment = client.put("job", b"state", name="a", checkpoint=1)
        assert client.get(segment.segment) == b"state"
        assert list(client.read([segment.segment] * 2)) == [(segment.segment, b"state")] * 2
        with pytest.raises(NotFound):
            client.get("01J404")


def test_a_reading_that_is_given_up_leaves_nothing_open(fake):
    with Client(fake.address) as client:
        client.create_job("job")
        segments = [client.put("job", bytes([n]) * 10, checkpoint=1).segment for n in range(3)]
        for _, data in client.read(segments):
            assert data == bytes(10)
            break
        assert client.get(segments[1]) == b"\1" * 10


def test_a_client_from_many_threads(fake):
    failures = []

    def work(client, n):
        try:
            for _ in range(20):
                segment = client.put("job", b"%d" % n, checkpoint=1)
                assert client.get(segment.segment) == b"%d" % n
        except BaseException as error:
            failures.append(error)

    with Client(fake.address) as client:
        client.create_job("job")
        threads = [threading.Thread(target=work, args=(client, n)) for n in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    assert len(fake.segments) == 100


def test_a_worker_goes_through_checkpoints_and_restarts(fake):
    with Client(fake.address) as client:
        client.create_job("job", operators=ONE)
        attempts = []

        def work(worker):
            attempts.append((worker.attempt, worker.restored, [part.elements for part in worker.restore()]))
            worker.start()
            fake.trigger("job")
            for checkpoint in worker.checkpoints():
                assert checkpoint.put(State.split([b"a", b"b"]))
                assert isinstance(checkpoint.wait(), Completed)
                if worker.attempt == 1:
                    fake.lose("job")
                else:
                    return checkpoint.number

        assert Worker("job", "count", 0, client=client).run(work) == 2
    assert attempts == [(1, None, []), (2, 1, [(b"a", b"b")])]
    assert fake.jobs["job"].ended == "FINISHED"


def test_events_and_poll(fake):
    with Client(fake.address) as client:
        client.create_job("job", operators=ONE)
        with Worker("job", "count", 0, client=client, events="poll") as worker:
            assert worker.next(0.1) is None
            fake.trigger("job")
            while (checkpoint := worker.poll()) is None:
                pass
            assert isinstance(checkpoint, Checkpoint)
            checkpoint.decline()
            told = []
            for event in worker.events():
                told.append(type(event))
                if isinstance(event, Aborted):
                    client.end_job("job", "CANCELED")
            assert told == [Aborted, Ended] and not worker.running


def test_a_restart_is_raised_in_the_thread_that_asks(fake):
    with Client(fake.address) as client:
        client.create_job("job", operators=ONE)
        with pytest.raises(Restart), Worker("job", "count", 0, client=client) as worker:
            worker.start()
            threading.Timer(0.1, lambda: fake.lose("job")).start()
            worker.next()
    assert fake.jobs["job"].failures == []


def test_an_exception_fails_the_task(fake):
    with Client(fake.address) as client:
        client.create_job("job", operators=ONE)
        with pytest.raises(ZeroDivisionError), Worker("job", "count", 0, client=client) as worker:
            worker.start()
            1 / 0
    assert fake.jobs["job"].failures == ["ZeroDivisionError: division by zero"]


def test_a_child_of_a_fork_uses_a_client_of_its_own(fake):
    with Client(fake.address) as client:
        client.create_job("job")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with pytest.raises(RuntimeError, match="fork"):
                    client.jobs()
                with Client(fake.address) as own:
                    code = 0 if [job["job"] for job in own.jobs()] == ["job"] else 2
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert sync._Loop.shared() is client._loop
