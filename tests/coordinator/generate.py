"""Writes schedules by chance, one a line: the same for the same seed.

    python3 tests/coordinator/generate.py 200 > schedules.jsonl        with the seeds 0 to 199
    python3 tests/coordinator/generate.py 1000 --from 5000             with the seeds 5000 to 5999
"""

import argparse
import json
import random

TASKS = ["source.0", "source.1", "count.0", "count.1"]
LONG = 50_001
UNLIMITED = 2147483647
REASONS = ["CHECKPOINT_DECLINED", "CHECKPOINT_DECLINED", "CHECKPOINT_ASYNC_EXCEPTION", "IO_EXCEPTION",
           "CHECKPOINT_DECLINED_TASK_NOT_READY", "CHECKPOINT_DECLINED_TASK_CLOSING",
           "CHECKPOINT_DECLINED_INPUT_END_OF_STREAM"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("schedules", type=int, metavar="N", help="how many")
    parser.add_argument("--from", dest="first", type=int, default=0, metavar="SEED", help="the first seed (default 0)")
    options = parser.parse_args()
    for seed in range(options.first, options.first + options.schedules):
        print(json.dumps(schedule(seed), separators=(",", ":")))


def schedule(seed):
    chance = random.Random(seed)
    settings = any_settings(chance)
    operators = [["source", 2], ["count", 2, "union"]] if chance.random() < 0.2 else [["source", 2], ["count", 2]]
    return {"name": f"seed_{seed}", "settings": settings, "operators": operators,
            "events": list(Story(chance, settings, len(operators[1]) == 3).events())}


def any_settings(chance):
    settings = {"one-periodic-request": True, "incremental": True}
    settings["tolerable-failed-checkpoints"] = chance.choice([0, 1, 2, 5, UNLIMITED])
    if chance.random() < 0.85:
        settings["interval"] = chance.choice([40, 60, 100, 200])
        settings["draw"] = chance.choice([0, 0.5, 1])
        # Below the interval it is refused, and 0 is off.
        if chance.random() < 0.4:
            settings["interval-during-backlog"] = chance.choice([0, settings["interval"] * chance.choice([1, 2, 3])])
    else:
        # Flink's reasons are others then when a job restarts: it does not.
        settings["tolerable-failed-checkpoints"] = UNLIMITED
    if chance.random() < 0.4:
        settings["min-pause"] = chance.choice([20, 40, 120])
    if chance.random() < 0.25:
        settings["unaligned.enabled"] = True
    elif chance.random() < 0.6:
        settings["max-concurrent-checkpoints"] = chance.choice([2, 3])
    # All else happens at full ten milliseconds: no two timers have the same time, of which either may be the first.
    settings["timeout"] = chance.choice([41, 91, 171, 601, LONG])
    settings["num-retained"] = chance.choice([1, 1, 2, 3])
    if chance.random() < 0.15:
        settings["retained"] = [[7, chance.choice(["own", "foreign"])]]
    if chance.random() < 0.1:
        settings["checkpoints-after-tasks-finish"] = False
    return settings


class Story:
    """What happens, by chance. It knows as little of what comes of it as workers do."""

    def __init__(self, chance, settings, union):
        self.chance = chance
        self.settings = settings
        self.union = union
        self.labels = 0
        self.held = set()
        self.running = list(TASKS)
        self.over = False

    def events(self):
        at = 0
        if self.chance.random() < 0.2:
            yield [at, "run", self.chance.choice(TASKS)]
            at += self.chance.randrange(10, 40, 10)
        yield [at, "run"]
        for _ in range(self.chance.randint(15, 50)):
            if self.over:
                break
            at += self.chance.choice([0, 10, 10, 20, 30, 50])
            yield from ([at, *event] for event in self.any_event())
        yield from ([at + 10, *event] for event in self.release_all())
        if self.chance.random() < 0.5:
            yield [at + 300, "end", self.chance.choice(["FINISHED", "CANCELED", "FAILED"])]
        yield [at + 600, "pass"]

    def any_event(self):
        happens = self.chance.choices(
            [self.acknowledge_all, self.acknowledge, self.decline, self.checkpoint, self.savepoint, self.backlog, self.hold,
             self.release, self.fail_storage, self.run, self.fail, self.finish, self.end_of_data, self.late, self.halt, self.stop],
            [30, 14, 8, 9, 6, 5, 3, 5, 4, 4, 2, 1, 1, 2, 0.5, 1])[0]
        return happens()

    def which(self):
        return self.chance.choice(["oldest", "oldest", "newest"])

    def acknowledge_all(self):
        return [["ack", self.which(), "*"]]

    def acknowledge(self):
        event = ["ack", self.which(), self.chance.choice(self.running)]
        return [event + ["finished"] if self.chance.random() < 0.1 else event]

    def decline(self):
        return [["decline", self.which(), self.chance.choice(self.running), self.chance.choice(REASONS)]]

    def label(self):
        self.labels += 1
        return f"r{self.labels}"

    def checkpoint(self):
        return [["checkpoint", self.label()] for _ in range(self.chance.choice([1, 1, 1, 3]))]

    def savepoint(self):
        return [["savepoint", self.label()]]

    def backlog(self):
        return [["backlog", self.chance.choice(["source", "count"]), self.chance.choice(["true", "false"])]]

    def hold(self):
        # One that expires while it begins is reported twice by Flink.
        what = self.chance.choice(["begin", "clean"] if self.settings["timeout"] == LONG else ["clean"])
        self.held.add(what)
        return [["hold", what]]

    def release(self):
        if "clean" in self.held and self.chance.random() < 0.5:
            return [["clean-one"]]
        if not self.held:
            return []
        what = self.chance.choice(sorted(self.held))
        self.held.remove(what)
        return [["release", what]]

    def fail_storage(self):
        # When it fails the job, Flink begins the next one meanwhile.
        counts = self.settings["tolerable-failed-checkpoints"] != UNLIMITED
        return [self.chance.choice([["fail-begin", "other" if counts else "io"], ["fail-begin", "other"], ["fail-store"]])]

    def run(self):
        return [["run"]]

    def fail(self):
        if "interval" not in self.settings:
            return []
        task = self.chance.choice(self.running)
        self.running = list(TASKS)
        # All tasks run before: else Flink keeps the queue.
        return [["run"], ["fail", task], ["run"]] if self.chance.random() < 0.7 else [["run"], ["fail", task]]

    def finish(self):
        """A task ends behind the checkpoints that it has to do with."""
        if len(self.running) < 3:
            return []
        task = self.running.pop(self.chance.randrange(len(self.running)))
        return [["end-of-data", task], *self.release_all(), *[["ack", "oldest", "*"]] * 10, ["finish", task]]

    def end_of_data(self):
        return [["end-of-data", task] for task in self.running[:self.chance.randint(1, 4)]]

    def late(self):
        return [["ack", self.chance.randint(1, 20), self.chance.choice(self.running)]]

    def halt(self):
        return [["halt"]]

    def stop(self):
        """Nothing else is asked for before it is over. If all goes well, that is the end."""
        if "interval" not in self.settings or self.union:
            return []
        self.over = self.chance.random() < 0.5
        ending = (["ack", "oldest", "*"], ["finish"]) if self.over else (
            ["decline", "oldest", self.running[0], self.chance.choice(REASONS)], ["run"])
        return [["heal"], *self.release_all(), ["stop", self.label(), self.chance.choice(["drain", "suspend"])], *ending]

    def release_all(self):
        held, self.held = sorted(self.held), set()
        return [["release", what] for what in held]


if __name__ == "__main__":
    main()
