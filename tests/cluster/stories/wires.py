"""Ways between daemons, and from each of them to storage, that can be cut one by one.

A way that is cut passes on nothing, in both directions, of the connections that one daemon opens; those that are opened from the other
end are another way. Mended, it either passes on what was held meanwhile, or closes the connections: both happen in networks.
"""

import asyncio
import os
import re
import socket
import threading
import time
from pathlib import Path

from e2e.daemons import Proxy

_REQUEST = re.compile(rb"(GET|PUT|POST|DELETE|HEAD) ")
LOOK_SECONDS = 0.02


class Wire(Proxy):
    """The way to a port. `who` tells the name of the process that connects from a port."""

    def __init__(self, port, who, delay=0):
        self.upstream, self.who, self.delay = port, who, delay
        # By name of the sender: since when nothing passes, as the number of the cut.
        self.cuts, self.lost, self.cut_number = {}, set(), 0
        self.requests, self.at_request = 0, None
        self.listens, self.server, self.loop = True, None, None
        super().__init__()

    async def _serve(self, started):
        self.loop = asyncio.get_running_loop()
        await self._listen()
        started.set()
        await asyncio.Event().wait()

    async def _listen(self):
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def _hang_up(self):
        self.server.close()
        for passing in list(self.accepted):
            passing.cancel()

    def refuse(self):
        """From now on nobody listens here, as at a process that is gone."""
        asyncio.run_coroutine_threadsafe(self._hang_up(), self.loop).result(10)

    def listen(self):
        asyncio.run_coroutine_threadsafe(self._listen(), self.loop).result(10)

    def cut(self, name):
        self.cut_number += 1
        self.cuts[name] = self.cut_number

    def mend(self, name, loses):
        """Passes on again; `loses` closes the connections that were cut."""
        number = self.cuts.get(name)
        if loses and number is not None:
            self.lost.add(number)
        self.cuts.pop(name, None)

    def kill_at(self, request, kill):
        """Calls `kill` at so many requests from now."""
        self.at_request = (self.requests + request, kill)

    async def _pass_on(self, reader, writer):
        name = self.who(writer.get_extra_info("peername")[1])
        there = back = None
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.upstream)
            await asyncio.gather(self._pass_unless_cut(name, reader, back, self._asked),
                                 self._pass_unless_cut(name, there, writer))
        except OSError:
            pass
        finally:
            for end in (writer, back):
                if end:
                    end.close()

    async def _pass_unless_cut(self, name, reader, writer, seen=None):
        """Passes pieces on while the way is not cut; `seen` is called with each before."""
        while data := await reader.read(1 << 18):
            if seen:
                await seen(data)
            await self._until_mended(name)
            writer.write(data)
            await writer.drain()
        writer.close()

    async def _asked(self, data):
        """From who has connected: what is asked is counted, and takes its time."""
        if _REQUEST.match(data):
            self.requests += 1
            if self.at_request and self.requests >= self.at_request[0]:
                (_, kill), self.at_request = self.at_request, None
                threading.Thread(target=kill).start()
        if self.delay:
            await asyncio.sleep(self.delay)

    async def _until_mended(self, name):
        while (number := self.cuts.get(name)) is not None:
            while self.cuts.get(name) == number:
                await asyncio.sleep(LOOK_SECONDS)
            if number in self.lost:
                raise ConnectionResetError("lost in a cut")


def process_of(port, processes):
    """The name in `processes` (name: process id) of who has a connection from a local port; None if it is none of them."""
    wanted = f":{port:04X}"
    for attempt in range(3):
        inodes = {fields[9] for fields in map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:])
                  if fields[1].endswith(wanted)}
        sockets = {f"socket:[{inode}]" for inode in inodes}
        for name, pid in processes.items():
            try:
                if any(_link(f"/proc/{pid}/fd/{fd}") in sockets for fd in os.listdir(f"/proc/{pid}/fd")):
                    return name
            except OSError:
                continue
        # The one that has connected may not have its descriptor yet.
        time.sleep(0.005 * attempt)
    return None


def _link(path):
    try:
        return os.readlink(path)
    except OSError:
        return None


def is_open(port):
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0
