"""Uses Esker as a file system, through an unmodified S3A of Hadoop: src/S3aFileSystem.java has the tests.

    tests/s3a/run          about a minute

Afterwards the daemon is stopped, and `esker verify --read-data 100` reads back all that is left. The exit status is 0
for success, 1 for a failure, and 3 if something has to be installed first.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "clients"))

from matrix.door import Door, Failed  # noqa: E402
from matrix.install import Maven, Unavailable, environment, needs  # noqa: E402
from matrix.options import add_program_and_cache, need_program, parsed  # noqa: E402
from matrix.referee import Referee  # noqa: E402

# And the AWS SDK that it was built with.
HADOOP, SDK = "3.5.0", "2.35.4"
BUCKET, EMPTY_BUCKET = "files", "empty"
SECONDS_MAX = 1200
# What S3A does to the JVM's own classes on Java 17.
JAVA = ["java", "-XX:+UseSerialGC", "-Xmx768m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error",
        "--add-opens=java.base/java.lang=ALL-UNNAMED"]


def main():
    options = parse()
    os.nice(max(0, 10 - os.nice(0)))
    try:
        needs("java")
        recipe = Maven(HERE, SDK, "hadoop-aws", sources=HERE / "src")
        installed = environment(options.cache, f"s3a-{HADOOP}", recipe, print)
    except Unavailable as missing:
        print(f"s3a: missing: {missing}", file=sys.stderr)
        sys.exit(3)
    folder, status = Path(tempfile.mkdtemp(prefix="esker-s3a-")), 1
    door = Door(options.esker, folder)
    try:
        referee = Referee(door.endpoint, door.access_key, door.secret_key)
        for bucket in (BUCKET, EMPTY_BUCKET):
            referee.make_bucket(bucket)
        done = subprocess.run(
            [*JAVA, "-cp", f"{installed.folder}/classes:{installed.folder}/lib/*", "S3aFileSystem", door.endpoint,
             door.access_key, door.secret_key, BUCKET, EMPTY_BUCKET], cwd=folder, timeout=SECONDS_MAX)
        if left := [upload for bucket in (BUCKET, EMPTY_BUCKET) for upload in referee.uploads(bucket)]:
            raise Failed(f"uploads are left: {left}")
        door.stop_and_verify()
        status = done.returncode
    except Failed as failed:
        print(f"FAILED: {failed}", file=sys.stderr)
    finally:
        door.kill()
        if status:
            print(f"logs and data are kept in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"s3a {HADOOP}: {'passed; esker verify read everything back' if status == 0 else 'failed'}")
    sys.exit(status)


def parse():
    parser = argparse.ArgumentParser(
        prog="tests/s3a/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_program_and_cache(parser, "Hadoop is kept")
    options = parsed(parser)
    need_program(options)
    return options


if __name__ == "__main__":
    main()
