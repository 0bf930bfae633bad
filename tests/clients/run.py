"""Takes the newest of each S3 client through a list of steps, on a daemon of its own.

    tests/clients/run                    all clients, a few minutes
    tests/clients/run boto3 rclone       these alone
    tests/clients/run --write            all, and docs/clients.md is written anew

A client that its registry does not give, or for which this machine lacks a compiler, is skipped by name. The exit
status is 0 for success, 1 for a failure, 2 for wrong arguments, and 3 if no client can be had.
"""

import argparse
import datetime
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from matrix import steps
from matrix.door import Door, Failed
from matrix.driver import Driver, NotOffered, Refusal
from matrix.install import Unavailable, environment
from matrix.options import add_program_and_cache, need_program, parsed
from matrix.referee import Referee
from matrix.registry import CLIENTS
from matrix.table import FAILED, NOT_OFFERED, OK, Table

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PAGE = REPOSITORY / "docs" / "clients.md"


class Run:
    def __init__(self, options, folder):
        self.options, self.folder, self.began = options, folder, time.monotonic()
        self.table, self.lock = Table(), threading.Lock()
        self.files = steps.Files(self._make("files"))

    def say(self, text):
        print(f"{time.monotonic() - self.began:6.1f} s  {text}", flush=True)

    def all(self):
        installed = self._install()
        if not installed:
            return 3
        self.door = Door(self.options.esker, self.folder)
        try:
            self._lay_listing()
            with ThreadPoolExecutor(self.options.at_once) as pool:
                list(pool.map(self._take_turn, installed))
            self._expect_no_uploads(installed)
            self.door.stop_and_verify()
            self.say("esker has stopped; esker verify has read everything back")
        finally:
            self.door.kill()
        return 1 if self.table.failures() else 0

    def _install(self):
        """The clients that can be had, each with its environment."""
        found, locks = {}, {client.environment or client.name: threading.Lock() for client in CLIENTS}

        def install(client):
            name = client.environment or client.name
            with locks[name]:
                try:
                    found[client.name] = environment(self.options.cache, name, client.recipe, self.say)
                except Unavailable as why:
                    self.say(f"{client.name}: SKIPPED, {why}")
                    with self.lock:
                        self.table.add(client, None, str(why))

        wanted = self.options.clients
        chosen = [client for client in CLIENTS if not wanted or client.name in wanted]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(install, chosen))
        self.say(f"{len(found)} of {len(chosen)} clients are installed")
        return [(client, found[client.name]) for client in chosen if client.name in found]

    def _lay_listing(self):
        """What all clients list in pages."""
        self._referee().make_bucket(steps.LISTING_BUCKET)
        keys, pages = steps.listing_keys(), []
        with ThreadPoolExecutor(8) as pool:
            for at in range(0, len(keys), 100):
                pages.append(pool.submit(self._lay_page, keys[at:at + 100]))
        for page in pages:
            page.result()

    def _lay_page(self, keys):
        referee = self._referee()
        for key in keys:
            referee.put(steps.LISTING_BUCKET, key, b"x")

    def _take_turn(self, entry):
        client, installed = entry
        version = client.version(installed.versions).removeprefix("v")
        name, folder = _bucket_of(client), self._make(_bucket_of(client))
        referee, log = self._referee(), self.folder / f"{name}.log"
        referee.make_bucket(name)
        command = [str(part) for part in client.command(installed.folder)]
        driver = Driver(command, self.door, folder, log)
        began, results = time.monotonic(), {}
        try:
            turn = steps.Turn(driver, referee, self.files, folder, name)
            for step, carry_out in client.steps.items():
                results[step] = _result(carry_out, turn)
        finally:
            driver.close()
        with self.lock:
            self.table.add(client, version, results)
            words = [word for word, _ in results.values()]
            self.say(f"{client.name} {version}: {len(words) - words.count(FAILED) - words.count(NOT_OFFERED)} ok, "
                     f"{words.count(NOT_OFFERED)} not offered, {words.count(FAILED)} failed "
                     f"({time.monotonic() - began:.0f} s)")
            for step, (word, note) in results.items():
                if word == FAILED:
                    self.say(f"    {step}: {note}")

    def _expect_no_uploads(self, installed):
        referee = self._referee()
        for client, _ in installed:
            if left := referee.uploads(_bucket_of(client)):
                raise Failed(f"{client.name} has left uploads: {left}")

    def _referee(self):
        return Referee(self.door.endpoint, self.door.access_key, self.door.secret_key)

    def _make(self, name):
        folder = self.folder / name
        folder.mkdir()
        return folder


def _result(carry_out, turn):
    try:
        note = carry_out(turn)
        return ("part", note) if note else (OK, "")
    except NotOffered as reason:
        return NOT_OFFERED, str(reason)
    except (steps.Wrong, Refusal) as failed:
        return FAILED, str(failed)
    except Exception:
        return FAILED, traceback.format_exc()


def _bucket_of(client):
    return "client-" + "".join(letter if letter.isalnum() else "-" for letter in client.name.lower()).replace("--", "-")


def main():
    options = parse()
    # Whoever shares this machine should notice little of it.
    os.nice(max(0, 10 - os.nice(0)))
    # A polite end goes through `finally` as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder = Path(tempfile.mkdtemp(prefix="esker-clients-"))
    run, status = Run(options, folder), 1
    try:
        status = run.all()
        for failure in run.table.failures():
            print(f"FAILED: {failure}", file=sys.stderr)
        if options.write and status == 0:
            PAGE.write_text(run.table.markdown(datetime.date.today().isoformat()))
    except Failed as failed:
        print(f"FAILED: {failed}", file=sys.stderr)
    finally:
        if status == 1 or options.keep:
            print(f"logs and data are kept in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print("clients: " + ", ".join(f"{count} {what}" for what, count in run.table.counts().items()))
    sys.exit(status)


def parse():
    names = [client.name for client in CLIENTS]
    parser = argparse.ArgumentParser(
        prog="tests/clients/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help=f"default all of them: {', '.join(names)}")
    parser.add_argument("--write", action="store_true", help="write docs/clients.md, if all went well")
    parser.add_argument("--keep", action="store_true", help="keep logs and data after a success, too")
    parser.add_argument("--at-once", type=int, default=2, help="how many clients run side by side (default 2)")
    add_program_and_cache(parser, "clients are kept")
    options = parsed(parser)
    if unknown := set(options.clients) - set(names):
        parser.error(f"unknown clients {', '.join(unknown)}; there are {', '.join(names)}")
    if options.write and options.clients:
        parser.error("--write is for all clients")
    need_program(options)
    return options


if __name__ == "__main__":
    main()
