"""The one pool of a process: who sizes it, and that nobody believes in threads that are not there."""

from __future__ import annotations

import os
import textwrap

import psutil
import pytest
from command import process

from cleave import threads as threads_module
from cleave.errors import EngineError
from cleave.threads import checked_threads, physical_cores


def ended(code: str) -> list[str]:
    """What a process wrote to stderr, by lines."""
    done = process(["-c", textwrap.dedent(code)])
    assert done.code == 0, done.err
    return done.err.splitlines()


def test_threads_that_the_pool_does_not_have_are_said_once() -> None:
    (said,) = ended(
        """
        from cleave.threads import session_options, use_one_thread_pool
        use_one_thread_pool(1)
        for threads in (None, 1, 3, 4, 3):
            session_options(threads)
        """
    )
    assert said.startswith("3 threads were asked for, and the one pool of this process has 1: ")
    assert "call use_one_thread_pool(3) before anything else" in said


def test_the_first_session_of_an_own_process_gets_the_threads_that_it_asks_for() -> None:
    lines = ended(
        """
        from cleave.threads import own_process, session_options, use_one_thread_pool
        own_process()
        session_options(3)
        assert use_one_thread_pool() == 3
        session_options()
        """
    )
    assert lines == []


def test_pools_of_their_own_have_the_threads_asked_for() -> None:
    lines = ended(
        """
        from cleave.threads import session_options
        assert [session_options(threads).intra_op_num_threads for threads in (1, 3)] == [1, 3]
        """
    )
    assert lines == []


@pytest.mark.parametrize(
    ("cores", "may_use", "default"),
    [(64, 2, 2), (2, 4, 2), (None, 3, 1)],
    ids=["bound", "smt", "unknown"],
)
def test_the_default_is_the_cores_that_the_process_may_use(
    cores: int | None, may_use: int, default: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: cores)
    monkeypatch.setattr(threads_module, "processors", lambda: may_use)
    assert physical_cores() == default
    assert [checked_threads(threads) for threads in (None, 1, may_use)] == [None, 1, may_use]
    message = (
        f"^threads is {may_use + 1}, and this process may run on {may_use} processors; "
        f"give at most {may_use}, or leave it away for {default}$"
    )
    with pytest.raises(EngineError, match=message):
        checked_threads(may_use + 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to processors")
def test_a_process_counts_the_processors_that_it_was_given() -> None:
    (count,) = process(
        [
            "-c",
            "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
            "from cleave.threads import physical_cores, processors; print(processors(), physical_cores())",
        ]
    ).out.splitlines()
    assert count == "1 1"
