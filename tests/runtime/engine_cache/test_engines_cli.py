"""`cleave engines`, `cleave build` and `cleave run --no_build`, over the engine `inductor` on the CPU."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import Ended, assert_one_sentence, cleave, contents, process
from engines import Builder, engine_key

from cleave.runtime.engine_cache.cache import EngineCache
from cleave.runtime.engines.kinds import KINDS

pytest.importorskip("torch")
ON_CPU = ("--engine", "inductor", "--device", "cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engine cache of one test."""
    monkeypatch.setenv("CLEAVE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def built(artifact: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A cache with the engine of an artifact, and how `cleave build` ended. Read it, do not change it."""
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLEAVE_CACHE", str(folder))
        return folder, cleave("build", artifact("one_layer"), *ON_CPU)


def listed() -> list[dict[str, Any]]:
    ended = cleave("engines", "ls", "--json")
    assert ended.code == 0, ended
    found: list[dict[str, Any]] = json.loads(ended.out)
    return found


# Building.


def test_a_build_ends_with_a_table_and_says_why_it_was_made(built: tuple[Path, Ended]) -> None:
    folder, ended = built
    assert ended.code == 0, ended
    for word in ("piece", "bytes", "seconds", "profile", "first", "last", "any number of rows", "1 row"):
        assert word in ended.out
    digest = EngineCache(folder).entries()[0].key.digest
    assert f"{digest[:12]}: built in" in ended.out
    assert "(no inductor engine is in the cache yet)" in ended.out


def test_the_second_build_builds_nothing(
    built: tuple[Path, Ended], artifact: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLEAVE_CACHE", str(built[0]))
    before = {path: path.stat().st_mtime_ns for path in built[0].rglob("*.bin")}
    ended = cleave("build", artifact("one_layer"), *ON_CPU)
    assert ended.code == 0, ended
    assert ": cached;" in ended.out
    assert {path: path.stat().st_mtime_ns for path in built[0].rglob("*.bin")} == before
    assert ended.err == ""


def test_run_uses_what_was_built_and_only_that(
    built: tuple[Path, Ended], artifact: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLEAVE_CACHE", str(built[0]))
    monkeypatch.setattr("cleave.runtime.engines.inductor.compiler.standalone_compile", None)
    options = ("--input", "San Francisco", "--max_new_tokens", 4, "--json")
    first = cleave("run", "--model", artifact("one_layer"), *ON_CPU, "--no_build", *options)
    assert first.code == 0, first
    onnxruntime = cleave("run", "--model", artifact("one_layer"), "--engine", "onnxruntime", *options)
    assert json.loads(first.out)["token_ids"] == json.loads(onnxruntime.out)["token_ids"]


def test_run_builds_on_first_use_and_finds_it_on_the_second(
    artifact: Callable[[str], Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("run", "--model", artifact("one_layer"), *ON_CPU, "--input", "San", "--max_new_tokens", 2)
    first = cleave(*command)
    assert first.code == 0, first
    assert len(listed()) == 1
    files = contents(folder)
    monkeypatch.setattr("cleave.runtime.engines.inductor.compiler.standalone_compile", None)
    second = cleave(*command)
    assert second.code == 0, second
    assert second.out == first.out
    after = contents(folder)
    assert files is not None
    assert after is not None
    assert {name for name in after if not name.endswith("checked.json")} == set(files) - {
        name for name in files if name.endswith("checked.json")
    }


def test_no_build_refuses_with_the_reason(artifact: Callable[[str], Path], folder: Path) -> None:
    command = ("run", "--model", artifact("one_layer"), *ON_CPU, "--no_build")
    cleave(*command).refused("no inductor engine is in the cache yet", "cleave build")
    assert contents(folder) is None


def test_a_kind_without_a_build_step_says_so(
    artifact: Callable[[str], Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = replace(KINDS["onnxruntime"], builder=None)
    monkeypatch.setitem(KINDS, "onnxruntime", without)
    cleave("build", artifact("one_layer"), "--engine", "onnxruntime").refused("onnxruntime", "no build step")
    cleave("engines", "why", artifact("one_layer"), "--engine", "onnxruntime").refused("no build step")
    assert contents(folder) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--engine", "tensorrt_llm"), ("there is no engine kind", "onnxruntime")),
        ((*ON_CPU, "--compute_capability", "8.6"), ("compute_capability", "device that it runs on")),
        ((*ON_CPU, "--max_model_len", 10**9), ("max_model_len", "context")),
        ((*ON_CPU, "--max_sequences", 0), ("max_sequences", "at least 1")),
    ],
)
def test_builds_that_cannot_be(
    artifact: Callable[[str], Path], folder: Path, options: tuple[object, ...], words: tuple[str, ...]
) -> None:
    cleave("build", artifact("one_layer"), *options).refused(*words)
    cleave("engines", "why", artifact("one_layer"), *options).refused(*words)


def test_a_cache_that_cannot_be_written_is_said_before_anything_is_built(
    artifact: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x", "utf-8")
    monkeypatch.setenv("CLEAVE_CACHE", str(tmp_path / "file" / "cache"))
    cleave("build", artifact("one_layer"), *ON_CPU).refused("cannot be written", "CLEAVE_CACHE")


def test_the_script_is_the_same_command(artifact: Callable[[str], Path], built: tuple[Path, Ended]) -> None:
    command = ["scripts/build_engines.py", artifact("one_layer"), *ON_CPU]
    ended = process(
        command, CLEAVE_CACHE=str(built[0]), OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "")
    )
    assert ended.code == 0, ended
    assert ": cached;" in ended.out


# Why.


def test_why_says_cached_or_what_differs(
    built: tuple[Path, Ended], artifact: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setenv("CLEAVE_CACHE", str(built[0]))
    command = ("engines", "why", artifact("one_layer"), *ON_CPU)
    assert cleave(*command).out == "cached\n"
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "9.9.9")
        ended = cleave(*command)
    assert ended.code == 0
    assert ended.out.startswith("inductor ")
    assert ended.out.endswith(" -> 9.9.9\n")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 77)
        assert cleave(*command).out.endswith("-> 77\n")
    assert "graph" in cleave("engines", "why", artifact("gqa"), *ON_CPU).out


# Listing and removing.


@pytest.fixture
def three(folder: Path) -> EngineCache:
    cache = EngineCache()
    for threads in (1, 2, 3):
        with cache.get(engine_key(threads=threads), Builder(), label=f"model-{threads}") as entry:
            pass
        os.utime(entry.folder / "entry.json", (threads * 100_000, threads * 100_000))
    return cache


def test_ls_shows_every_engine_the_one_used_last_first(three: EngineCache) -> None:
    ended = cleave("engines", "ls")
    assert ended.code == 0, ended
    lines = [line for line in ended.out.splitlines() if "model-" in line]
    assert ["model-3" in lines[0], "model-2" in lines[1], "model-1" in lines[2]] == [True] * 3
    for word in ("onnxruntime 1.30.0", "avx512", "float32", "[[tokens, 1, 8, 64]]", "1,002", "1970-01-"):
        assert word in lines[0], lines[0]
    assert engine_key(threads=3).digest[:12] in lines[0]
    assert "engines: 3, 3,006 of" in ended.out
    assert str(three.directory) in ended.out
    (first, _, _) = listed()
    assert first["key"]["threads"] == 3
    assert first["bytes"] == 1002


def test_ls_of_no_engines(folder: Path) -> None:
    ended = cleave("engines", "ls")
    assert ended.code == 0
    assert_one_sentence(ended.out.removesuffix("\n"), "no engines in", str(folder))
    assert contents(folder) is None


def test_ls_verify_reads_everything_and_fails_on_damage(three: EngineCache) -> None:
    ended = cleave("engines", "ls", "--verify")
    assert ended.code == 0
    assert ended.out.count("intact") == 3
    plan = three.directory / engine_key(threads=2).digest / "middle.plan"
    plan.write_bytes(b"\1" * 1000)
    ended = cleave("engines", "ls", "--verify")
    assert ended.code == 1
    assert ended.out.count("intact") == 2
    assert "middle.plan has another SHA-256" in ended.out
    damages = json.loads(cleave("engines", "ls", "--verify", "--json").out)
    assert [one["damage"] is None for one in damages] == [True, False, True]


def test_rm_removes_what_a_beginning_names(three: EngineCache) -> None:
    digests = [engine_key(threads=threads).digest for threads in (1, 2, 3)]
    ended = cleave("engines", "rm", digests[0][:12], digests[1])
    assert ended.code == 0, ended
    assert ended.out.count("removed, 1,002 bytes") == 2
    assert [entry["digest"] for entry in listed()] == [digests[2]]
    assert cleave("engines", "rm", "--all").code == 0
    assert listed() == []


def test_rm_of_all_says_where_there_was_nothing(folder: Path) -> None:
    ended = cleave("engines", "rm", "--all")
    assert ended.code == 0
    assert ended.out == f"no engines in {folder}\n"


def test_rm_refuses_what_it_cannot_mean(three: EngineCache) -> None:
    before = contents(three.directory)
    cleave("engines", "rm").refused("--all")
    cleave("engines", "rm", "--all", "abc").refused("--all")
    cleave("engines", "rm", "xyz").refused("'xyz'", "engines ls")
    cleave("engines", "rm", "").refused("3 engines", "more digits")
    assert contents(three.directory) == before


def test_rm_leaves_what_is_in_use_and_fails(three: EngineCache) -> None:
    with three.get(engine_key(threads=1), Builder()):
        ended = cleave("engines", "rm", "--all")
    assert ended.code == 1
    assert ended.out.count("in use, not removed") == 1
    assert [entry["model"] for entry in listed()] == ["model-1"]


def test_gc_evicts_down_to_a_size(three: EngineCache) -> None:
    assert cleave("engines", "gc").out == "removed: leftovers 0, engines 0, 0 bytes\n"
    (three.directory / ".removed-x").mkdir()
    assert (
        cleave("engines", "gc", "--max_bytes", 2500).out == "removed: leftovers 1, engines 1, 1,002 bytes\n"
    )
    assert [entry["model"] for entry in listed()] == ["model-3", "model-2"]
    cleave("engines", "gc", "--max_bytes", -1).refused("-1 bytes")


def test_engines_are_listed_and_removed_without_torch(three: EngineCache) -> None:
    """A machine that only serves has no torch."""
    code = (
        "import sys\n"
        "from cleave.__main__ import main\n"
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules\n"
    )
    ended = process(["-c", code, "engines", "ls"])
    assert ended.code == 0, ended
    assert "model-3" in ended.out
