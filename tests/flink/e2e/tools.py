"""What the test needs besides itself: looks for it, and installs it into a cache folder."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .processes import Failed

FLINK_VERSION = "2.3.0"
# The newest of its line whose S3 file system on Hadoop is on Maven.
FLINK_1_20 = "1.20.1"
VERSITYGW_VERSION = "v1.8.0"

HERE = Path(__file__).resolve().parent.parent

HOW_TO_INSTALL = {
    "java": "Java 17 or newer (Debian: apt-get install openjdk-17-jdk-headless)",
    "javac": "a Java development kit, 17 or newer (Debian: apt-get install openjdk-17-jdk-headless)",
    "jar": "a Java development kit, 17 or newer (Debian: apt-get install openjdk-17-jdk-headless)",
    "mvn": "Maven 3.8 or newer (Debian: apt-get install maven)",
    "go": "Go 1.24 or newer (https://go.dev/dl/)",
}


class Missing(Exception):
    """Something has to be installed before the test can run. The message says what and how."""


class NotGiven(Missing):
    """A registry does not give it."""


@dataclass(frozen=True)
class Flink:
    """Which Flink: its version, its S3 file system, and other parts that `flink-home.xml` names."""

    plugin: str
    version: str = FLINK_VERSION
    parts: tuple = ()

    @property
    def profiles(self):
        return [self.plugin, *self.parts]


@dataclass
class Tools:
    flink_home: Path
    plugins: Path
    versitygw: Path | None
    esker: Path | None
    cache: Path


def prepare(cache, flink, esker, needs_versitygw, say):
    """Installs what is not in `cache` yet. A second run with the same cache needs no network."""
    # What the cache holds is what the file listed when it was filled.
    listed = hashlib.sha256((HERE / "flink-home.xml").read_bytes()).hexdigest()[:8]
    home = cache / f"flink-{flink.version}-{'-'.join(flink.profiles)}-{listed}"
    versitygw = cache / "bin" / f"versitygw-{VERSITYGW_VERSION}" if needs_versitygw else None
    wanted = ["java", "javac", "jar"]
    wanted += ["mvn"] if not home.exists() else []
    wanted += ["go"] if versitygw and not versitygw.exists() else []
    missing = [tool for tool in wanted if not shutil.which(tool)]
    if missing:
        raise Missing("\n".join(f"{tool} is missing: install {HOW_TO_INSTALL[tool]}" for tool in missing))
    if esker and not os.access(esker, os.X_OK):
        raise Missing(f"no program at {esker}: run `cargo build`, or name one with --esker or ESKER_BIN")

    cache.mkdir(parents=True, exist_ok=True)
    if not home.exists():
        say(f"installing Flink {flink.version} with {', '.join(flink.profiles)}")
        _install(home, lambda draft: _install_flink(draft, flink))
    if versitygw:
        prepare_versitygw(cache, say)
    return Tools(home, home / "plugins", versitygw, esker, cache)


def prepare_versitygw(cache, say):
    """Returns the program, which it builds if it is not in `cache` yet."""
    versitygw = cache / "bin" / f"versitygw-{VERSITYGW_VERSION}"
    if not versitygw.exists():
        if not shutil.which("go"):
            raise Missing(f"go is missing: install {HOW_TO_INSTALL['go']}")
        say(f"installing versitygw {VERSITYGW_VERSION}, which takes a few minutes")
        _install(versitygw, _install_versitygw)
    return versitygw


def compile_job(home, folder):
    """Compiles the job into `folder` and returns its jar."""
    jar = folder / "tally.jar"
    classes = folder / "classes"
    sources = sorted((HERE / "job" / "src").rglob("*.java"))
    _run(["javac", "--release", "17", "-cp", home / "lib" / "*", "-d", classes, *sources], error=Failed)
    _run(["jar", "--create", "--file", jar, "-C", classes, "."], error=Failed)
    return jar


def _install(target, make):
    """Has `make` fill a draft, and gives it its name once it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="draft-") as folder:
        draft = Path(folder) / target.name
        make(draft)
        try:
            draft.rename(target)
        except OSError:
            if not target.exists():  # Otherwise another run was faster.
                raise


def _install_flink(draft, flink):
    _run(["mvn", "-q", "-B", "-Dstyle.color=never", "-f", HERE / "flink-home.xml", "generate-resources",
          f"-Dhome={draft}", f"-Dflink.version={flink.version}", "-P", ",".join(flink.profiles)], error=NotGiven)


def _install_versitygw(draft):
    env = dict(os.environ, GOBIN=str(draft.parent), GOFLAGS="-p=2 -buildvcs=false", CGO_ENABLED="0")
    _run(["go", "install", f"github.com/versity/versitygw/cmd/versitygw@{VERSITYGW_VERSION}"],
         env=env, cwd=draft.parent)
    (draft.parent / "versitygw").rename(draft)


def _run(command, error=Missing, **options):
    command = [str(part) for part in command]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1800, **options)
    if done.returncode != 0:
        raise error(f"`{' '.join(command)}` failed:\n{done.stdout}")
