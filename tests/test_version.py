"""The version, as the package and the command tell it."""

from __future__ import annotations

import importlib.metadata

import pytest
from command import cleave

import cleave as package
from cleave.version import UNKNOWN, version


def test_the_package_and_the_command_tell_the_installed_version() -> None:
    installed = importlib.metadata.version("cleave")
    assert package.__version__ == installed
    ended = cleave("--version")
    assert (ended.code, ended.out, ended.err) == (0, f"cleave {installed}\n", "")


def test_a_folder_that_is_not_installed_has_a_version_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert version.__wrapped__() == UNKNOWN
