"""What is shipped: version, types, no dependencies."""

import importlib.metadata
import re
from pathlib import Path

import esker

REPOSITORY = Path(__file__).resolve().parents[3]


def test_the_version_is_that_of_the_rust_crate():
    crate = (REPOSITORY / "Cargo.toml").read_text()
    section = crate[crate.index("[workspace.package]") :]
    version = re.search(r'^version = "(.+)"$', section, re.MULTILINE)[1]

    assert esker.__version__ == version
    assert importlib.metadata.version("esker") == version


def test_the_package_is_typed_and_needs_nothing():
    files = [str(file) for file in importlib.metadata.files("esker")]

    assert "esker/py.typed" in files
    assert all("extra ==" in need for need in importlib.metadata.requires("esker") or [])
    assert any(file.endswith("LICENSE") for file in files)


def test_all_that_is_exported_is_there():
    assert all(hasattr(esker, name) for name in esker.__all__)
