"""Plays schedules to Flink's own checkpoint coordinator: README.md tells of them.

    tests/coordinator/run                      all of them; fails if Flink does anything else than is recorded; a minute
    tests/coordinator/run --write              the same, and records what Flink does
    tests/coordinator/run --seeds 1000 200     200 new ones by chance, from the seed 1000 on, and then ours against them

The exit status is 0 for success, 1 for a failure, and 3 if something has to be installed first.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
sys.path.insert(0, str(HERE.parent / "clients"))

from matrix.install import Jars, Unavailable, environment, needs, run  # noqa: E402

FLINK_VERSION = "2.3.0"
SCHEDULES_OF_CHANCE = 200
SECONDS_MAX = 1800
JAVA = ["java", "-XX:+UseSerialGC", "-Xmx512m", "--add-opens=java.base/java.util=ALL-UNNAMED"]
MAIN = "org.apache.flink.runtime.checkpoint.SideBySide"


class Failed(Exception):
    """Something is different."""


def main():
    options = parse()
    os.nice(max(0, 10 - os.nice(0)))
    try:
        flink = Flink(options.cache)
        if options.seeds:
            play_new(flink, *options.seeds)
        else:
            play_recorded(flink, options.write)
    except Unavailable as missing:
        print(f"coordinator: missing: {missing}", file=sys.stderr)
        sys.exit(3)
    except Failed as failed:
        print(f"FAILED: {failed}", file=sys.stderr)
        sys.exit(1)


class Flink:
    """Its jars, and the program that plays schedules to it."""

    def __init__(self, cache):
        needs("java", "javac")
        jars = Jars(HERE / "pom.xml", {"flink.version": FLINK_VERSION})
        self.lib = environment(cache, f"coordinator-{FLINK_VERSION}", jars, print).folder / "lib"

    def play(self, schedules):
        """What Flink makes of schedules, both as lines."""
        with tempfile.TemporaryDirectory(prefix="esker-coordinator-") as classes:
            run(["javac", "--release", "17", "-nowarn", "-cp", f"{self.lib}/*", "-d", classes,
                 *sorted((HERE / "src").glob("*.java"))])
            done = subprocess.run([*JAVA, "-cp", f"{classes}:{self.lib}/*", MAIN], input=schedules,
                                  stdout=subprocess.PIPE, text=True, timeout=SECONDS_MAX)
        if done.returncode != 0:
            raise Failed("the program that plays schedules to Flink")
        return done.stdout


def play_recorded(flink, write):
    generated = generate(SCHEDULES_OF_CHANCE, 0)
    by_chance = HERE / "random.jsonl"
    if write:
        by_chance.write_text(generated)
    elif by_chance.read_text() != generated:
        raise Failed("generate.py makes other schedules than random.jsonl has: run tests/coordinator/run --write")
    for name in ("rules", "random"):
        seen = flink.play((HERE / f"{name}.jsonl").read_text())
        recorded = HERE / f"{name}.flink.jsonl"
        if write:
            recorded.write_text(seen)
        else:
            compare(recorded.read_text(), seen)
        print(f"coordinator: Flink {FLINK_VERSION}: {len(seen.splitlines())} schedules of {name}.jsonl, "
              f"{'recorded' if write else 'as recorded'}")


def compare(recorded, seen):
    recorded, seen = ({(line := json.loads(text))["name"]: line["flink"] for text in lines.splitlines()}
                      for lines in (recorded, seen))
    different = [name for name in recorded | seen if recorded.get(name) != seen.get(name)]
    if different:
        first = different[0]
        raise Failed(f"Flink does something else than is recorded, with {len(different)} schedules: {', '.join(different[:9])}\n"
                     f"{first}\n  recorded {json.dumps(recorded.get(first))}\n  now      {json.dumps(seen.get(first))}")


def play_new(flink, first, count):
    with tempfile.TemporaryDirectory(prefix="esker-coordinator-") as folder:
        schedules = generate(count, first)
        Path(folder, "random.jsonl").write_text(schedules)
        Path(folder, "random.flink.jsonl").write_text(flink.play(schedules))
        test = ["cargo", "test", "--quiet", "--lib", "schedules_in_the_folder_that_is_named", "--", "--ignored"]
        if subprocess.run(test, cwd=REPOSITORY, env=dict(os.environ, ESKER_SIDE_BY_SIDE=folder)).returncode != 0:
            raise Failed("ours does something else than Flink")
    print(f"coordinator: Flink {FLINK_VERSION}: {count} schedules from the seed {first} on, ours does the same")


def generate(count, first):
    made = subprocess.run([sys.executable, HERE / "generate.py", str(count), "--from", str(first)],
                          stdout=subprocess.PIPE, text=True, check=True)
    return made.stdout


def parse():
    parser = argparse.ArgumentParser(
        prog="tests/coordinator/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="record what Flink does")
    parser.add_argument("--seeds", nargs=2, type=int, metavar=("FIRST", "N"), help="play N new schedules by chance")
    parser.add_argument("--cache", type=Path, metavar="DIR",
                        default=os.environ.get("ESKER_TEST_CACHE", REPOSITORY / "target" / "test-cache"),
                        help="where Flink is kept (default $ESKER_TEST_CACHE, or target/test-cache)")
    options = parser.parse_args()
    options.cache = Path(options.cache).absolute()
    return options


if __name__ == "__main__":
    main()
