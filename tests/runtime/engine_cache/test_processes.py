"""The engine cache between processes: one builds, one is killed, one is interrupted."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command import REPOSITORY
from engines import FIELDS, Builder, engine_key

from cleave.runtime.engine_cache.cache import EngineCache

SCRIPT = """
    import logging, sys
    from pathlib import Path
    from cleave.runtime.engine_cache.cache import EngineCache
    from cleave.runtime.engine_cache.key import EngineKey

    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.WARNING)

    def build(folder):
        (folder / "middle.plan").write_bytes(bytes(500))
        print("building", flush=True)
        sys.stdin.readline()
        (folder / "middle.plan").write_bytes(bytes(1000))

    try:
        engine = EngineCache(sys.argv[1]).get(EngineKey(FIELDS), build)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    else:
        print("built" if engine.was_built else "found", flush=True)
        sys.stdin.readline()
"""


@contextmanager
def builder_process(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that gets the engine; it says where it is, and goes on with every line it is sent."""
    code = textwrap.dedent(SCRIPT).replace("FIELDS", repr(FIELDS))
    with subprocess.Popen(
        [sys.executable, "-c", code, str(directory)],
        cwd=REPOSITORY,
        env=os.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def staged(directory: Path) -> list[Path]:
    return list(directory.glob(".staging-*"))


def test_two_processes_build_one_key_once_and_the_second_says_what_it_waits_for(tmp_path: Path) -> None:
    with builder_process(tmp_path) as first:
        assert line(first) == "building"
        with builder_process(tmp_path) as second:
            waiting = line(second)
            assert waiting == f"another process ({first.pid}) builds this onnxruntime engine; waiting for it"
            go_on(first)
            assert line(first) == "built"
            assert line(second) == "found"
    assert len(EngineCache(tmp_path).entries()) == 1


def test_waiting_can_be_interrupted(tmp_path: Path) -> None:
    with builder_process(tmp_path) as first:
        assert line(first) == "building"
        with builder_process(tmp_path) as second:
            assert "waiting" in line(second)
            second.send_signal(signal.SIGINT)
            assert line(second) == "interrupted"
        go_on(first)
        assert line(first) == "built"


def test_a_builder_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    with builder_process(tmp_path) as process:
        assert line(process) == "building"
        assert len(staged(tmp_path)) == 1
        process.send_signal(signal.SIGINT)
        assert line(process) == "interrupted"
        assert [path.name for path in tmp_path.iterdir()] == [".locks"]


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A cache with one engine, whose builder of another was killed in mid-build."""
    EngineCache(tmp_path).get(engine_key(threads=8), Builder()).close()
    with builder_process(tmp_path) as process:
        assert line(process) == "building"
        process.kill()
        process.wait()
    assert len(staged(tmp_path)) == 1
    return tmp_path


def test_a_cache_can_be_read_after_its_builder_was_killed(killed: Path) -> None:
    cache = EngineCache(killed)
    cache.get(engine_key(threads=8), Builder(), allow_build=False).close()
    assert cache.why(engine_key()) == "threads 8 -> 2"
    assert len(cache.entries()) == 1


def test_the_next_build_after_a_kill_works_and_clears_up(
    killed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), EngineCache(killed).get(engine_key(), Builder()) as engine:
        assert engine.was_built
        assert engine.files["middle.plan"].stat().st_size == 1000
    assert caplog.records == [], "nobody is waited for"
    assert staged(killed) == []


def test_gc_clears_up_after_a_kill_and_leaves_a_living_builder_alone(killed: Path) -> None:
    with builder_process(killed.parent / "other") as process:
        assert line(process) == "building"
        assert EngineCache(killed).gc() == (1, [])
        assert EngineCache(killed.parent / "other").gc() == (0, [])
        go_on(process)
        assert line(process) == "built"
    assert staged(killed) == []


def test_what_a_killed_process_used_can_be_evicted(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    with builder_process(tmp_path) as process:
        assert line(process) == "building"
        go_on(process)
        assert line(process) == "built"
        assert [removal.is_gone for removal in cache.remove(cache.entries())] == [False], "it is open there"
        process.kill()
        process.wait()
    assert [removal.is_gone for removal in cache.remove(cache.entries())] == [True]
