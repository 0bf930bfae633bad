"""docs/clients.md, as a run made it."""

from .steps import MEANING, STEPS

OK, NOT_OFFERED, FAILED = "ok", "-", "**failed**"

#: What stands below the table.
NATIVE = """## Clients of the native API

A worker that uses the native API says itself what it stores and for which checkpoint, and may leave its checkpoints to
[the coordinator](coordinator.md).

| | where | what it has |
| --- | --- | --- |
| Rust | [clients/rust](../clients/rust/README.md) | the native API, async (tokio) |
| Python | [clients/python](../clients/python/README.md) | the native API and coordinated jobs, async (asyncio) and for threads; Python 3.10 and nothing else |
| all others | [clients/openapi.json](../clients/openapi.json) | each endpoint and field; [examples/native-http](../examples/native-http/) does without a client |

The client for Python repeats requests by itself: each is made so that a repeat does no harm. Its worker helper beats, takes in events as
a stream or, if none gets through, by long poll, and gives a task its state back at any parallelism. [examples/python](../examples/python/) is a
job of five processes that counts exactly once while they and the daemon are killed.

`tests/python/run` installs the package, checks its types and runs its tests: against a daemon made for them that loses answers, cuts streams,
is slow, restarts and tells wrong bytes, and against the real one, which is killed.
"""

HEAD = """\
# Clients of the S3 door

This page is written by `tests/clients/run --write`, which installs the newest version of each client from its registry
and takes it through the steps below, on `esker dev` with a local disk. After each step a client of the test's own looks
at what has become of the objects: bytes, entity tags, listings, uploads that are left. At the end `esker verify
--read-data 100` reads back all that is stored. `tests/run` runs the same and fails if a step does.

`ok`: it works, unmodified. `-`: the client does not offer it. `part`: it works as far as the client offers it. A lake
table (deltalake), an array store (icechunk) and a backup (restic) stand in the columns that they come closest to.
"""


class Table:
    def __init__(self):
        # (client, version, registry, {step: (word, note)}) or (client, None, registry, why it was skipped)
        self.rows = []

    def add(self, client, version, results):
        self.rows.append((client.name, version, client.registry, results))
        self.rows.sort(key=lambda row: row[0].lower())

    def failures(self):
        return [f"{name} {version}, {step}: {note}" for name, version, _, results in self.rows if version
                for step, (word, note) in results.items() if word == FAILED]

    def counts(self):
        words = [word for _, version, _, results in self.rows if version for word, _ in results.values()]
        skipped = sum(version is None for _, version, _, _ in self.rows)
        return {"ok": words.count(OK) + words.count("part"), "not offered": words.count(NOT_OFFERED),
                "failed": words.count(FAILED), "clients skipped": skipped}

    def markdown(self, recorded):
        lines = [HEAD, f"Recorded on {recorded}.", "", "| step | what happens |", "| --- | --- |"]
        lines += [f"| {step} | {MEANING[step]} |" for step in STEPS]
        lines += ["", "## Results", ""]
        there = [row for row in self.rows if row[1]]
        # Steps go down and clients across in pieces of a readable width.
        for at in range(0, len(there), 6):
            piece = there[at:at + 6]
            lines.append("| | " + " | ".join(name for name, *_ in piece) + " |")
            lines.append("| --- " * (len(piece) + 1) + "|")
            lines.append("| version | " + " | ".join(version for _, version, *_ in piece) + " |")
            lines.append("| registry | " + " | ".join(registry for _, _, registry, _ in piece) + " |")
            for step in STEPS:
                lines.append(f"| {step} | " + " | ".join(row[3].get(step, ("", ""))[0] for row in piece) + " |")
            lines.append("")
        lines += ["## Notes", ""]
        for name, _, _, results in there:
            notes = {}
            for step, (word, note) in results.items():
                if note:
                    notes.setdefault(note, []).append(step)
            lines += [f"- {name}, {', '.join(steps)}: {note}." for note, steps in notes.items()]
        for name, _, registry, why in (row for row in self.rows if not row[1]):
            lines.append(f"- {name} was skipped, {registry} did not give it: {why}.")
        lines += ["", NATIVE]
        return "\n".join(lines)
