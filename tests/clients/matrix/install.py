"""Installs each client into an environment of its own below the cache, so that none holds another one back.

An environment holds the newest version of the day on which it was made. It is made anew after a few days, and when
what it is made of changes; if that fails, for want of a network, the old one is kept.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

DRIVERS = Path(__file__).resolve().parent.parent / "drivers"
DAYS_MAX = 7
INSTALL_SECONDS = 1500


class Unavailable(Exception):
    """The client cannot be had. The message says why."""


@dataclass
class Environment:
    folder: Path
    versions: dict


def environment(cache, name, recipe, say):
    """The folder that `recipe` filled, and the versions that it found. `recipe` is callable and has `made_of`."""
    folder = cache / "clients" / name
    stamp = folder / "made.json"
    made_of = hashlib.sha256(repr(recipe.made_of()).encode()).hexdigest()
    made = json.loads(stamp.read_text()) if stamp.exists() else None
    usable = made and made["of"] == made_of
    if usable and time.time() - stamp.stat().st_mtime < DAYS_MAX * 86_400:
        return Environment(folder, made["versions"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="draft-") as draft:
        try:
            versions = recipe(Path(draft))
        except Unavailable as why:
            if not usable:
                raise
            say(f"{name}: keeping {made['versions']}, for a newer one cannot be had: {why}")
            return Environment(folder, made["versions"])
        (Path(draft) / "made.json").write_text(json.dumps({"of": made_of, "versions": versions}))
        shutil.rmtree(folder, ignore_errors=True)
        Path(draft).rename(folder)
        Path(draft).mkdir()  # For the end of `with`.
    return Environment(folder, versions)


@dataclass
class Pip:
    """Packages of the Python Package Index. The first is the client."""

    packages: list

    def made_of(self):
        return self.packages, sys.version_info[:2]

    def __call__(self, draft):
        # Links within an environment are its own, so it may be moved; its programs are started through its interpreter.
        run([sys.executable, "-m", "venv", "--without-pip", draft])
        run([sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", draft / "bin" / "python",
             "install", "--quiet", "--no-compile", *self.packages])
        # Maps the name of a package to the version that its folder tells.
        found = {}
        for info in draft.glob("lib/python*/site-packages/*.dist-info"):
            package, version = info.name.removesuffix(".dist-info").split("-")
            found[package.replace("_", "-").lower()] = version
        return {package: found[package.partition("==")[0]] for package in self.packages}


@dataclass
class Npm:
    folder: Path
    node_min: int

    def made_of(self):
        return _sources(self.folder)

    def __call__(self, draft):
        needs("node", "npm")
        node = subprocess.run(["node", "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        if int(node.removeprefix("v").partition(".")[0]) < self.node_min:
            raise Unavailable(f"node is {node}, it needs {self.node_min}")
        # The driver lies beside what it imports.
        shutil.copytree(self.folder, draft, dirs_exist_ok=True)
        run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--no-package-lock"], cwd=draft)
        wanted = json.loads((draft / "package.json").read_text())["dependencies"]
        found = {name: draft / "node_modules" / name / "package.json" for name in wanted}
        return {name: json.loads(package.read_text())["version"] for name, package in found.items()}


@dataclass
class Go:
    """Programs of ours out of the newest of these modules."""

    programs: list
    modules: list

    def made_of(self):
        return self.modules, [_sources(DRIVERS / "go" / program) for program in ["serve", *self.programs]]

    def __call__(self, draft):
        needs("go")
        for program in ["serve", *self.programs]:
            shutil.copytree(DRIVERS / "go" / program, draft / program)
        (draft / "go.mod").write_text("module drivers\n\ngo 1.24\n")
        run(["go", "get", *(f"{module}@latest" for module in self.modules)], cwd=draft, env=go_settings())
        run(["go", "build", "-o", "bin/", *(f"./{program}" for program in self.programs)], cwd=draft, env=go_settings())
        required = re.findall(r"^\s*(?:require )?(\S+/\S+) (v\S+)", (draft / "go.mod").read_text(), re.MULTILINE)
        return {module: dict(required)[module] for module in self.modules}


@dataclass
class GoProgram:
    """A program that is a module by itself."""

    package: str
    version: str

    def made_of(self):
        return self.package, self.version

    def __call__(self, draft):
        needs("go")
        run(["go", "install", f"{self.package}@{self.version}"], cwd=draft, env=go_settings(GOBIN=str(draft / "bin")))
        return {self.package: self.version}


@dataclass
class Jars:
    """The jars that a pom names, with these of its properties."""

    pom: Path
    properties: dict

    def made_of(self):
        return self.pom.read_text(), self.properties

    def __call__(self, draft):
        needs("mvn")
        run(["mvn", "-q", "-B", "-U", "-Dstyle.color=never", "-f", self.pom, "generate-resources",
             f"-Dlib={draft / 'lib'}", *(f"-D{name}={value}" for name, value in self.properties.items())])
        return self.properties


@dataclass
class Maven:
    """The jars that a pom names, in the newest version of a range, and a driver compiled against them."""

    folder: Path
    versions: str
    # The artifact whose version is told.
    artifact: str
    # Where the driver is, if not beside the pom.
    sources: Path | None = None

    def made_of(self):
        return self.versions, _sources(self.folder)

    def __call__(self, draft):
        needs("javac")
        Jars(self.folder / "pom.xml", {"sdk.version": self.versions})(draft)
        sources = sorted((self.sources or self.folder).glob("*.java"))
        run(["javac", "--release", "17", "-cp", draft / "lib" / "*", "-d", draft / "classes", *sources])
        jars = " ".join(jar.name for jar in (draft / "lib").iterdir())
        version = re.search(rf"(?<!\S){self.artifact}-(\d\S*)\.jar", jars)[1]
        return {self.artifact: version}


def needs(*programs):
    if missing := [program for program in programs if not shutil.which(program)]:
        raise Unavailable(f"{', '.join(missing)}: not on this machine")


def go_settings(**more):
    return dict(os.environ, GOFLAGS="-p=2 -buildvcs=false -mod=mod", CGO_ENABLED="0", **more)


def run(command, **options):
    command = [str(part) for part in command]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, timeout=INSTALL_SECONDS, **options)
    if done.returncode != 0:
        last = [line for line in done.stdout.splitlines() if line.strip()][-3:]
        raise Unavailable(f"`{' '.join(command[:6])} ..` failed: {' / '.join(last)}")


def _sources(folder):
    return [(str(file.relative_to(folder)), file.read_text()) for file in sorted(folder.rglob("*")) if file.is_file()]
