"""Other ways to a daemon than plain TCP: a Unix socket, TLS, proxies."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess

import pytest
from esker import AddressError, Client, Completed, Worker
from fake import Fake

ONE = [{"id": "count", "parallelism": 1, "max_parallelism": 8}]


async def one_checkpoint(fake: Fake, address: str, job: str = "job", **more) -> None:
    async with Client(address, **more) as client:
        await client.create_job(job, operators=ONE)
        async with Worker(job, "count", 0, client=client) as worker:
            await worker.start()
            fake.trigger(job)
            checkpoint = await worker.next(10)
            assert await checkpoint.put(bytes(5 << 20))
            assert isinstance(await checkpoint.wait(), Completed)
            stored = fake.jobs[job].completed[1][("count", 0)]["state"][0]["segment"]
            assert [len(data) async for _, data in client.read([stored])] == [5 << 20]


def test_a_unix_socket(tmp_path, go):
    fake = Fake()
    fake.unix = str(tmp_path / "esker.sock")
    with fake:
        go(one_checkpoint(fake, f"unix:{tmp_path}/esker.sock"))


@pytest.fixture
def certificate(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=esker -addext subjectAltName=IP:127.0.0.1"
    made = [*command.split(), "-keyout", tmp_path / "key", "-out", tmp_path / "crt"]
    subprocess.run(made, check=True, capture_output=True)
    return tmp_path / "crt", tmp_path / "key"


def test_tls(certificate, go, monkeypatch):
    crt, key = certificate
    fake = Fake()
    fake.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    fake.tls.load_cert_chain(crt, key)
    with fake:
        with pytest.raises(AddressError, match="certificate is not trusted"):
            go(one_checkpoint(fake, fake.address))
        go(one_checkpoint(fake, fake.address, tls=ssl.create_default_context(cafile=crt)))
        monkeypatch.setenv("ESKER_CA", str(crt))
        go(one_checkpoint(fake, fake.address, "other"))


class Proxy:
    """A proxy before several daemons: each connection goes to the next one; to one that restarts, 502."""

    def __init__(self, ports: list[int]) -> None:
        self.ports, self.turn, self.refused = ports, 0, 0

    async def __aenter__(self) -> "Proxy":
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.turn += 1
        try:
            there = await asyncio.open_connection("127.0.0.1", self.ports[self.turn % len(self.ports)])
        except OSError:
            self.refused += 1
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbad")
            writer.close()
            return
        await asyncio.gather(self.copy(reader, there[1]), self.copy(there[0], writer))

    async def copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()


def test_a_rolling_restart_behind_a_proxy(go):
    # Two doors of one daemon: what a cluster is for a client.
    with Fake() as one, Fake() as two:
        two.jobs, two.segments, two.by_key, two.by_hand = one.jobs, one.segments, one.by_key, one.by_hand

        async def run():
            async with Proxy([one.port, two.port]) as proxy, Client(proxy.address) as client:
                await client.create_job("job", operators=ONE)
                async with Worker("job", "count", 0, client=client) as worker:
                    await worker.start()
                    for round_ in range(6):
                        down = (one, two)[round_ % 2]
                        restarting = asyncio.create_task(asyncio.to_thread(down.restart, 0.3, forget=False))
                        number = one.trigger("job")
                        # Each door has a log of its own; the other one wakes up for its next heartbeat.
                        two.on_loop(two._notify)
                        while not hasattr(checkpoint := await worker.next(20), "number"):
                            pass
                        assert checkpoint.number == number
                        one.fault("POST", "/ack$", "status", status=421)
                        assert await checkpoint.put(b"x")
                        await restarting
                return proxy.refused

        assert go(run()) > 0
        assert sorted(one.jobs["job"].completed) == [1, 2, 3, 4, 5, 6]
        assert one.jobs["job"].attempt == 1
