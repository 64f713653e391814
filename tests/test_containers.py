"""The Dockerfiles install what their server needs, and keep what it builds. No image is built here."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass

import pytest
from command import REPOSITORY
from typer.testing import CliRunner

from cleave.__main__ import application
from cleave.runtime.engine_cache.directory import DIRECTORY_VARIABLE
from cleave.runtime.engines.kinds import engine_kind

FILES = ("Dockerfile", "Dockerfile.gpu")


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """Its comments, and its instructions in order, an instruction's lines joined."""

    comments: tuple[str, ...]
    instructions: tuple[tuple[str, str], ...]

    @classmethod
    def read(cls, name: str) -> Dockerfile:
        lines = (REPOSITORY / name).read_text("utf-8").replace("\\\n", " ").splitlines()
        pairs = (line.partition(" ") for line in lines if line and line[0] != "#")
        return cls(
            tuple(line for line in lines if line.startswith("#")),
            tuple((verb, rest) for verb, _, rest in pairs),
        )

    def all(self, verb: str) -> list[str]:
        return [rest for found, rest in self.instructions if found == verb]

    @property
    def environment(self) -> dict[str, str]:
        words = (word.partition("=") for line in self.all("ENV") for word in line.split())
        return {name: value for name, _, value in words}

    @property
    def extras(self) -> set[str]:
        defaults = dict(line.split("=") for line in self.all("ARG"))
        (asked,) = re.findall(r"/src\[([^]]+)\]", "\n".join(self.all("RUN")))
        return set(defaults.get(asked.removeprefix("$"), asked).split(","))


@pytest.mark.parametrize("name", FILES)
def test_what_is_installed_and_called_exists(name: str) -> None:
    file = Dockerfile.read(name)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    assert file.extras <= set(project["optional-dependencies"])
    assert "server" in file.extras
    assert '"cleave", "serve"' in file.all("ENTRYPOINT")[0]
    assert CliRunner().invoke(application(), ["serve", "--help"]).exit_code == 0


def test_the_image_for_a_gpu_installs_what_its_engine_needs() -> None:
    """Directly, and not as what another package happens to bring."""
    assert engine_kind("inductor").extra in Dockerfile.read("Dockerfile.gpu").extras


def test_engines_outlive_a_container_for_a_gpu() -> None:
    file = Dockerfile.read("Dockerfile.gpu")
    folder = file.environment[DIRECTORY_VARIABLE]
    (user,) = file.all("USER")
    made = file.instructions.index(("RUN", f"install -d -o {user} -g nogroup {folder}"))
    assert made < file.instructions.index(("VOLUME", folder)) < file.instructions.index(("USER", user))
    assert any(f":{folder}" in comment and "docker run" in comment for comment in file.comments)
