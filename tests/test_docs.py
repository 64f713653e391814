"""The documents name what is there: files, headings, commands, options, extras and Python names."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from command import REPOSITORY
from documents import Document, commands, documents

from cleave.__main__ import application, single
from cleave.export.cli import export
from cleave.runtime.cli import run
from cleave.runtime.engines.cli import build

ROOMS = {
    *("cleave", "export", "plugins", "kvcache", "runtime"),
    *("benchmarks", "deploy", "docs", "scripts", "tests"),
}
MADE = ("benchmarks/out",)
"""What commands write, and a clone has not."""
SCRIPTS: dict[str, Callable[..., Any]] = {"export_llama2": export, "run_llama2": run, "build_engines": build}
FILE = re.compile(r"[\w.*{},/-]+\.(?:py|md|json|cpp|h|hpp|html|svg|png|txt|toml)")

each_document = pytest.mark.parametrize("document", documents(), ids=lambda document: document.name)


@each_document
def test_links_lead_somewhere(document: Document) -> None:
    dead = []
    for link in document.links():
        place, _, anchor = link.partition("#")
        if "://" in place:
            continue
        target = (document.path.parent / place).resolve() if place else document.path
        known = anchor == "" or (target.suffix == ".md" and anchor in Document(target).anchors())
        if not (target.exists() and known):
            dead.append(link)
    assert dead == []


@each_document
def test_files_that_are_named_are_there(document: Document) -> None:
    words = {word.strip("`'\"(),:;") for phrase in _code(document) for word in phrase.split()}
    assert sorted(word for word in words if _is_of_the_repository(word) and not _exists(word)) == []


@each_document
def test_commands_are_understood(document: Document) -> None:
    wrong = []
    phrases = [phrase for phrase in document.phrases() if phrase.startswith(("python ", "make "))]
    for words in (*document.shell(), *(words for phrase in phrases for words in commands(phrase))):
        try:
            _parse(words)
        except Exception as error:
            wrong.append((" ".join(words), str(error)))
    assert wrong == []


@each_document
def test_options_within_sentences_are_there(document: Document) -> None:
    known = _all_options()
    missing = []
    for phrase in document.phrases():
        words = re.split(r"[\s|=,\[\]]+", phrase)
        if words[0].startswith("--"):
            # Those of others have hyphens.
            missing += [word for word in words if re.fullmatch(r"--\w+_\w+", word) and word not in known]
        elif words[0] == "cleave" and len(words) > 1:
            missing += [word for word in words if word.startswith("--") and word not in known]
            missing += [f"cleave {words[1]}"] if words[1].isalpha() and words[1] not in _verbs() else []
    assert missing == []


@each_document
def test_extras_are_those_of_the_package(document: Document) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    named = re.findall(r"pip install (?:-e )?'?\.\[([\w,]+)\]", document.path.read_text("utf-8"))
    asked = {extra for extras in named for extra in extras.split(",")}
    assert asked <= set(project["optional-dependencies"])


@each_document
def test_python_compiles_and_imports_what_is_there(document: Document) -> None:
    for block in document.fences("python"):
        tree = compile(block, document.name, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cleave"):
                module = importlib.import_module(node.module or "")
                assert [name.name for name in node.names if not hasattr(module, name.name)] == []


def test_the_readme_leads_to_every_document() -> None:
    readme, *others = documents()
    linked = {(REPOSITORY / link.partition("#")[0]).resolve() for link in readme.links()}
    assert [other.name for other in others if other.path not in linked] == []


def _code(document: Document) -> Iterator[str]:
    yield from document.phrases()
    for words in document.shell():
        yield from words


def _is_of_the_repository(word: str) -> bool:
    first = word.split("/")[0]
    has_placeholder = re.search(r"\b[A-Z]{2,}\b", word.replace("README", "").replace("CONTRIBUTING", ""))
    if has_placeholder or word.startswith(MADE):
        return False
    return bool(FILE.fullmatch(word)) and ("/" not in word or first in ROOMS)


def _exists(word: str) -> bool:
    if "/" in word:
        return any(REPOSITORY.glob(word))
    return word in _names() or word in EXAMPLES


EXAMPLES = {
    # Files of checkpoints, artifacts, caches and other projects.
    "config.json",
    "convert_checkpoint.py",
    "engine.json",
    "generation_config.json",
    "manifest.json",
    "tokenizer.json",
}


@cache
def _names() -> set[str]:
    rooms = [REPOSITORY / room for room in (*sorted(ROOMS), "model_files/demo")]
    return {path.name for room in rooms for path in room.rglob("*")} | {
        path.name for path in REPOSITORY.iterdir()
    }


def _parse(words: list[str]) -> None:
    """Raises what the command itself raises where it does not understand the words."""
    words = [Path(word).name if word.startswith((".venv/", "/")) else word for word in words]
    if words[0] == "cleave":
        _understand(application(), words[1:])
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text("utf-8"), re.M)
        assert [word for word in words[1:] if "=" not in word and word not in targets] == []
    elif words[:1] == ["python"] and words[1].startswith("scripts/") and Path(words[1]).stem in SCRIPTS:
        _understand(single(SCRIPTS[Path(words[1]).stem]), words[2:])
    elif words[:1] == ["python"] and words[1].startswith(("scripts/", "benchmarks/")):
        options = [word for word in words[2:] if word.startswith("--")]
        assert [option for option in options if option not in _options_in(words[1])] == []


def _understand(app: typer.Typer, words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words[0]]
        words = words[1:]
    command.make_context("cleave", words)


def _options_in(script: str) -> set[str]:
    """Options of a script that uses argparse, its own and those of the modules beside it that it imports."""
    file = REPOSITORY / script
    source = file.read_text("utf-8")
    beside = [file.parent / f"{name}.py" for name in re.findall(r"^from (\w+) import", source, re.M)]
    texts = [source, *(path.read_text("utf-8") for path in beside if path.is_file())]
    return {option for text in texts for option in re.findall(r'add_argument\(\s*"(--[\w-]+)"', text)}


@cache
def _verbs() -> frozenset[str]:
    return frozenset(typer.main.get_command(application()).commands)  # type: ignore[attr-defined]


@cache
def _all_options() -> set[str]:
    """Of all verbs, and of the scripts that use argparse."""
    found = {"--help"}
    pending: list[Any] = [typer.main.get_command(application())]
    while pending:
        command = pending.pop()
        pending += getattr(command, "commands", {}).values()
        found |= {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
    for script in (*(REPOSITORY / "benchmarks").glob("*.py"), REPOSITORY / "scripts" / "train_demo_model.py"):
        found |= _options_in(str(script.relative_to(REPOSITORY)))
    return found
