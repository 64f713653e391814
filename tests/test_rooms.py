"""Who may import whom, and that serving needs nothing of what the export needs."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from command import REPOSITORY, process

ROOMS = ("export", "plugins", "runtime", "kvcache")
TOP = ("cleave.__init__", "cleave.__main__")
"""The public API and the command, which are there to bring the rooms together."""

MAY_IMPORT = {
    "cleave.kvcache": ("cleave.kvcache",),
    "cleave.plugins": ("cleave.plugins", "cleave.kvcache"),
    "cleave.export": ("cleave.export", "cleave.plugins"),
    "cleave.runtime": (
        "cleave.runtime",
        "cleave.plugins",
        "cleave.kvcache",
        "cleave.export.artifact",
        "cleave.export.dequantized",
        "cleave.export.manifest",
        "cleave.export.tensorfile",
        "cleave.export.pieces",
        "cleave.export.widening",
        "cleave.export.shape",
    ),
}
"""Room -> what its modules may import, besides the modules that stand at the top and import no room."""

HEAVY = ("torch", "transformers", "onnxscript", "onnx_ir", "safetensors", "huggingface_hub")
"""What the extra `export` brings, and an installation for serving lacks."""


@dataclass(frozen=True, slots=True)
class Import:
    """One import statement."""

    module: str
    """Dotted name of the module that has it."""
    line: int
    target: str
    """Dotted name of what it imports."""
    late: bool
    """Whether it stands inside a function, and so runs only when that is called."""

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the package by its name."""
    for path in sorted(
        [*(REPOSITORY / "cleave").glob("*.py"), *(REPOSITORY / "cleave" / "crew").glob("*.py")]
    ):
        dotted = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        yield dotted.removesuffix(".__init__") if path.parent.name == "crew" else dotted, path
    for room in ROOMS:
        for path in sorted((REPOSITORY / room).rglob("*.py")):
            dotted = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
            yield f"cleave.{dotted}".removesuffix(".__init__"), path


NAMES = dict(modules())


def imports_in(module: str, text: str) -> Iterator[Import]:
    """The imports of a module, wherever they stand; `from package import module` is one of the module."""
    tree = ast.parse(text)
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} is a relative import"
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names]
            targets = [name if name in NAMES else base for name in names]
        else:
            continue
        for target in dict.fromkeys(targets):
            yield Import(module, node.lineno, target, id(node) in inside)


ALL = [found for name, path in NAMES.items() for found in imports_in(name, path.read_text("utf-8"))]


def within(target: str, allowed: tuple[str, ...]) -> bool:
    return any(target == name or target.startswith(f"{name}.") for name in allowed)


def room_of(module: str) -> str | None:
    return next((room for room in MAY_IMPORT if within(module, (room,))), None)


# The rules, read off the source.


def test_the_modules_are_found() -> None:
    for name in ("__main__", "export.artifact", "kvcache.backends.cpu", "plugins.schema", "runtime.llm"):
        assert f"cleave.{name}" in NAMES
    assert len(ALL) > 200
    assert Import("x", 1, "cleave.export.artifact", late=False) in list(
        imports_in("x", "from cleave.export import artifact")
    )
    assert next(iter(imports_in("x", "def f():\n    import torch"))).late


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_what_it_may(room: str) -> None:
    """Late imports count: where a module may not know another one, it may not know it later either."""
    strangers = [
        found
        for found in ALL
        if room_of(found.module) == room
        and room_of(found.target) is not None
        and not within(found.target, MAY_IMPORT[room])
    ]
    assert not strangers, "\n".join(map(str, strangers))


def test_nothing_but_the_top_imports_runtime() -> None:
    for found in ALL:
        if within(found.target, ("cleave.runtime",)):
            assert within(found.module, ("cleave.runtime",)) or found.module in TOP, found


def test_modules_at_the_top_that_rooms_import_know_no_room_themselves() -> None:
    """Else a room could reach another one through them."""
    used = {found.target for found in ALL if room_of(found.module) and not room_of(found.target)}
    used = {name for name in used if name in NAMES}
    assert "cleave.errors" in used
    for found in ALL:
        if found.module in used:
            assert room_of(found.target) is None, found


def test_no_room_is_imported_by_its_bare_name() -> None:
    for found in ALL:
        assert found.target.partition(".")[0] not in ROOMS, found
    for folder in ("tests", "scripts", "benchmarks"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            for found in imports_in(str(path), path.read_text("utf-8")):
                assert found.target.partition(".")[0] not in ROOMS, found


def reached(*starts: str) -> set[str]:
    """The modules that importing `starts` brings in, packages on the way included."""
    seen: set[str] = set()
    waiting = list(starts)
    while waiting:
        name = waiting.pop()
        parts = name.split(".")
        waiting += [".".join(parts[:count]) for count in range(2, len(parts)) if count < len(parts)]
        if name in seen or name not in NAMES:
            continue
        seen.add(name)
        waiting += [found.target for found in ALL if found.module == name and not found.late]
    return seen


@pytest.mark.parametrize(
    "module", ["cleave.export.artifact", "cleave.export.pieces", "cleave.runtime.llm", "cleave.runtime.cli"]
)
def test_serving_never_gets_to_what_only_the_export_needs(module: str) -> None:
    serving = reached(module)
    for found in ALL:
        if found.module in serving and not found.late:
            assert not within(found.target, HEAVY), found


def test_the_reading_of_an_artifact_needs_few_modules_of_the_export() -> None:
    needed = {name for name in reached("cleave.runtime.llm") if name.startswith("cleave.export.")}
    few = (
        "artifact",
        "external",
        "manifest",
        "pieces",
        "quantization",
        "quantized",
        "shape",
        "tensorfile",
        "widening",
    )
    assert needed <= {f"cleave.export.{name}" for name in few}


# The rules, seen while running.


def python(code: str, *arguments: object) -> str:
    """What a program prints, in a process of its own."""
    ended = process(["-c", textwrap.dedent(code), *arguments])
    assert ended.code == 0, ended.err
    return ended.out


def test_no_bare_room_is_loaded_when_everything_is() -> None:
    code = """
        import importlib, json, sys
        for name in sys.argv[1:]:
            if not name.endswith("__main__"):
                importlib.import_module(name)
        print(json.dumps(sorted(sys.modules)))
    """
    away: tuple[str, ...] = ("cleave.runtime.bench", "cleave.__init__")
    if importlib.util.find_spec("flashinfer") is None:  # it compiles for a GPU, so tests do without
        away += ("cleave.kvcache.backends.flashinfer", "cleave.kvcache.backends.flashinfer_chunks")
    names = [name for name in NAMES if not within(name, away)]
    loaded = json.loads(python(code, *names))
    assert set(names) - {"cleave.__main__"} <= set(loaded)
    assert not {name for name in loaded if name.partition(".")[0] in ROOMS}


SERVE = """
    import json, sys
    from cleave import LLM, SamplingParams
    with LLM(sys.argv[1], attention="cpu") as llm:
        (answer,) = llm.generate(["San Francisco is a"], SamplingParams(max_tokens=8))
    import cleave.__main__
    print(json.dumps([answer.token_ids, sorted(sys.modules)]))
"""

NO_EXTRAS = f"""
    import sys

    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in {HEAVY!r}:
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

    sys.meta_path.insert(0, Missing())
"""


def test_serving_imports_no_torch_and_no_transformers(artifact: Callable[[str], Path]) -> None:
    tokens, loaded = json.loads(python(SERVE, artifact("one_layer")))
    assert len(tokens) == 8
    assert not {name for name in loaded if within(name, HEAVY)}
    assert "cleave.export.artifact" in loaded
    assert "cleave.export.trace" not in loaded


def test_serving_works_where_the_extra_is_not_installed(artifact: Callable[[str], Path]) -> None:
    expected, _ = json.loads(python(SERVE, artifact("one_layer")))
    tokens, _ = json.loads(python(textwrap.dedent(NO_EXTRAS) + textwrap.dedent(SERVE), artifact("one_layer")))
    assert tokens == expected


def command_without_extras(*arguments: object) -> list[object]:
    code = textwrap.dedent(NO_EXTRAS) + "from cleave.__main__ import main\nmain()\n"
    return ["-c", code, *arguments]


def test_cleave_run_works_where_the_extra_is_not_installed(artifact: Callable[[str], Path]) -> None:
    options = ("--model", artifact("one_layer"), "--input", "San", "--max_new_tokens", 4, "--json")
    ended = process(command_without_extras("run", *options))
    assert ended.code == 0, ended.err
    assert len(json.loads(ended.out)["token_ids"]) == 4


def test_cleave_export_says_what_to_install(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    output = tmp_path / "output"
    options = ("--model", checkpoint("one_layer"), "--output_dir", output)
    ended = process(command_without_extras("export", *options))
    ended.refused("`cleave export` needs torch", "pip install", "torch>=", "transformers")
    assert not output.exists()


def test_the_reference_backend_says_what_to_install(artifact: Callable[[str], Path]) -> None:
    options = ("--model", artifact("one_layer"), "--attention", "reference")
    process(command_without_extras("run", *options)).refused("torch", "pip install")


# What is installed.


BROUGHT_BY = {
    "opentelemetry.exporter.otlp.proto.http": "opentelemetry_exporter_otlp_proto_http",
    "opentelemetry.sdk": "opentelemetry_sdk",
    "opentelemetry": "opentelemetry_api",
}
"""What packages install that share a name, the longest first."""


def package_of(target: str) -> str:
    shared = (package for name, package in BROUGHT_BY.items() if within(target, (name,)))
    return next(shared, target.partition(".")[0])


def test_every_package_that_is_imported_is_asked_for() -> None:
    """Directly: what another package happens to bring may be gone with its next release."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(line for name in extras for line in extras[name])]
    asked = {re.split(r"[\s<>=!~;\[]", line)[0].replace("-", "_").lower() for line in wanted}
    known = {*sys.stdlib_module_names, "cleave", *asked}
    # cuda-bindings is one of several; flashinfer-python brings flashinfer.
    known |= {"cuda", "flashinfer"} & {name.partition("_")[0] for name in asked}
    strangers = [found for found in ALL if package_of(found.target) not in known]
    assert not strangers, "\n".join(map(str, strangers))


def test_every_extra_that_an_error_names_exists() -> None:
    """`MissingPackage(package, extra, purpose)` prints what to install for an extra."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    named = []
    for name, path in NAMES.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "MissingPackage"
                and isinstance(node.args[1], ast.Constant)
            ):
                named.append((name, node.args[1].value))
    assert named
    for name, extra in named:
        assert extra in project["optional-dependencies"], f"{name} speaks of the extra {extra}"
