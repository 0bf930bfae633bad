"""Three daemons, of which one after the other is killed, stopped, cut off, ended or replaced, while clients write and read through all.

Each daemon reaches storage, and each of its peers, by a way of its own (`wires`). In the end all is mended, everything is read at each
daemon, and the storage is verified.
"""

import random
import signal
import threading
import time

from e2e.daemons import ACCESS, BUCKET, SECRET, Daemon, Daemons
from e2e.processes import Failed

from .history import Clients
from .wires import Wire, is_open, process_of

WRITERS, READERS = 4, 3
# What a request to an object store takes.
STORAGE_DELAY = 0.03
# The longest that a request may take from its beginning to its answer, with what holds it and a machine that is busy.
BACK_SECONDS = 90
# Requests of a daemon to storage, or of others to it, before it is killed.
KILLED_WITHIN = 60


class WiredDaemon(Daemon):
    def __init__(self, cluster, name):
        self.to_storage = Wire(cluster.server.port, lambda _: name, STORAGE_DELAY)
        self.to_here = None
        super().__init__(cluster, name)
        self.running = False

    def storage(self):
        return self.to_storage.endpoint

    def advertised(self):
        if self.to_here is None:
            self.to_here = Wire(self.api, self.cluster.name_of)
            self.to_here.refuse()
        return self.to_here.endpoint

    def begin(self):
        super().begin()
        self.cluster.pids[self.name] = self.process.child.pid
        # Whoever is not up yet is refused, as where nobody listens.
        self.cluster.processes.until(f"daemon {self.name} to listen", 60, lambda: is_open(self.api) or self.ready.exists(), every=0.02)
        self.to_here.listen()
        self.running = True

    def gone(self):
        self.running = False
        self.to_here.refuse()

    def kill(self):
        super().kill()
        self.gone()

    def end(self):
        if self.running:
            super().end()
            self.gone()

    def signal(self, what):
        self.process.child.send_signal(what)


class WiredDaemons(Daemons):
    kind = WiredDaemon

    def __init__(self, *args, **more):
        self.pids = {}
        super().__init__(*args, **more)

    def name_of(self, port):
        return process_of(port, self.pids)

    def others(self, daemon):
        return [other for other in self.daemons if other is not daemon]


class Story:
    def __init__(self, frame, options, versitygw):
        self.say, self.processes, self.options = frame.say, frame.processes, options
        self.draw = random.Random(options.seed)
        self.cluster = WiredDaemons(frame.processes, frame.folder, options.esker, versitygw, shards=options.shards)
        self.done = {}
        cluster = self.cluster
        self.clients = Clients(cluster.proxy, ACCESS, SECRET, BUCKET, WRITERS, READERS, options.seed)

    # What happens. Each leaves all three running and all ways mended.

    def killed(self, daemon):
        daemon.kill()
        self.wait(1, 6)
        daemon.begin()

    def killed_at_a_request(self, daemon):
        """To storage, or of a peer."""
        wire, gone = self.draw.choice([daemon.to_storage, daemon.to_here]), threading.Event()
        wire.kill_at(self.draw.randint(1, KILLED_WITHIN), lambda: (daemon.kill(), gone.set()))
        if not gone.wait(15):
            # It was asked less than that.
            wire.at_request = None
            if not gone.wait(1):
                daemon.kill()
        self.wait(0, 4)
        daemon.begin()

    def stopped(self, daemon):
        daemon.signal(signal.SIGSTOP)
        self.wait(0.5, 12)
        daemon.signal(signal.SIGCONT)

    def cut_from_a_peer(self, daemon):
        """In one direction: what it asks that peer does not get there."""
        self.cut([(self.draw.choice(self.cluster.others(daemon)).to_here, daemon.name)])

    def cut_from_both_peers(self, daemon):
        self.cut([(other.to_here, daemon.name) for other in self.cluster.others(daemon)]
                 + [(daemon.to_here, other.name) for other in self.cluster.others(daemon)])

    def unheard(self, daemon):
        """It reaches its peers, and they do not reach it."""
        self.cut([(daemon.to_here, other.name) for other in self.cluster.others(daemon)])

    def cut_from_storage(self, daemon):
        self.cut([(daemon.to_storage, daemon.name)])

    def ended(self, daemon):
        daemon.end()
        self.wait(0, 3)
        daemon.begin()

    def everybody_ended(self, _):
        """One after the other, as an upgrade does it."""
        for daemon in self.cluster.daemons:
            self.ended(daemon)
            self.until_whole()

    def another_version(self, daemon):
        """It goes on as another version of the program, or comes back from that."""
        other = {self.options.esker: self.options.old, self.options.old: self.options.esker}
        daemon.end()
        daemon.program = other[daemon.program]
        daemon.begin()

    def storage_away(self, _):
        self.cut([(daemon.to_storage, daemon.name) for daemon in self.cluster.daemons])

    def kinds(self):
        kinds = [self.killed, self.killed_at_a_request, self.killed_at_a_request, self.stopped, self.cut_from_a_peer,
                 self.cut_from_both_peers, self.unheard, self.cut_from_storage, self.ended, self.everybody_ended, self.storage_away]
        return kinds + [self.another_version] * 3 if self.options.old else kinds

    def cut(self, ways):
        loses = self.draw.random() < 0.5
        for wire, name in ways:
            wire.cut(name)
        self.wait(0.5, 12)
        for wire, name in ways:
            wire.mend(name, loses)

    def wait(self, least, most):
        time.sleep(self.draw.uniform(least, most))
        self.clients.check()

    def until_whole(self):
        """Until every daemon is there and says that all shards have owners."""
        def whole():
            self.clients.check()
            statuses = [daemon.status() for daemon in self.cluster.daemons]
            return all(status and len(status["shards"]) == self.options.shards
                       and all(shard["owner"] for shard in status["shards"]) for status in statuses)

        self.processes.until("all shards to have owners", BACK_SECONDS, whole)

    def run(self):
        until = time.monotonic() + 60 * self.options.minutes
        self.wait(2, 2)
        while time.monotonic() < until:
            # Most of it matters at an owner.
            daemon = (self.cluster.owner() if self.draw.random() < 0.6 else None) or self.draw.choice(self.cluster.daemons)
            happens = self.draw.choice(self.kinds())
            self.say(f"{daemon.name}: {happens.__name__.replace('_', ' ')}")
            happens(daemon)
            self.until_whole()
            self.done[happens.__name__] = self.done.get(happens.__name__, 0) + 1
            self.wait(0, 3)
        self.until_whole()
        self.clients.end()
        for daemon in self.cluster.daemons:
            self.clients.read_everything(f"http://127.0.0.1:{daemon.s3}", f"at the end, daemon {daemon.name}")
        if self.clients.counts["changes answered"] == 0 or self.clients.counts["reads"] == 0:
            raise Failed(f"the clients got nothing done: {dict(self.clients.counts)}")
        self.cluster.close()
        self.say(", ".join(f"{count} {what}" for what, count in sorted(self.clients.counts.items())))
        self.say(f"{len(self.clients.keys)} keys; the longest request took {self.clients.longest:.1f} s")
        self.say(", ".join(f"{name.replace('_', ' ')} {count}" for name, count in sorted(self.done.items())))


def run(frame, options, versitygw):
    frame.say(f"seed {options.seed}, {options.minutes:g} minutes, {options.shards} shards")
    Story(frame, options, versitygw).run()
