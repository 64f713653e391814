"""Crews: every part of every job once, whoever is awake, and no thread left behind."""

from __future__ import annotations

import gc
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from command import REPOSITORY, Ended, process
from crews import KINDS, PARTS, Counter

from cleave.crew.borrowed import can_borrow
from cleave.crew.callback import Callback
from cleave.crew.crew import Crew
from cleave.crew.semaphore import SemaphoreCrew
from cleave.errors import EngineError

every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


@pytest.fixture
def crew(request: pytest.FixtureRequest) -> Iterator[Crew]:
    make, threads = request.param
    made = make(threads)
    yield made
    made.close()


every_size = pytest.mark.parametrize(
    "crew",
    [
        pytest.param((make, threads), id=f"{name}-{threads}")
        for name, make in KINDS.items()
        for threads in (1, 2, 9)
    ],
    indirect=True,
)


@every_size
def test_thousands_of_tiny_jobs_run_every_part_once(crew: Crew) -> None:
    job = Counter(crew)
    for parts in np.random.default_rng(0).integers(1, PARTS, 2000).tolist():
        job.run(parts)


@every_size
def test_a_caller_that_sleeps_until_slow_parts_have_ended_is_woken(crew: Crew) -> None:
    job = Counter(crew, pauses=True)
    for parts in (1, 2, 5, 9, 2, 30, 3) * 4:
        job.run(parts)


@every_kind
def test_crews_in_different_threads_do_not_disturb_each_other(make: Callable[[int], Crew]) -> None:
    crews = [make(4) for _ in range(4)]

    def work(crew: Crew) -> None:
        job = Counter(crew)
        for parts in range(300):
            job.run(1 + parts % PARTS)

    with ThreadPoolExecutor(4) as callers:
        list(callers.map(work, crews))
    for made in crews:
        made.close()


@every_kind
def test_a_crew_serves_several_callers_one_after_the_other(make: Callable[[int], Crew]) -> None:
    crew = make(3)
    for _ in range(20):
        caller = threading.Thread(target=Counter(crew).run, args=(20,))
        caller.start()
        caller.join()
    crew.close()


class Interrupted(Exception):
    pass


def run_until_interrupted(job: Counter) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.003)
    while True:
        job.run(12)


@every_kind
def test_a_signal_is_handled_after_the_job_and_the_next_job_runs(make: Callable[[int], Crew]) -> None:
    def interrupt(number: int, frame: Any) -> None:
        raise Interrupted

    crew = make(3)
    job = Counter(crew, pauses=True)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(10):
            with pytest.raises(Interrupted):
                run_until_interrupted(job)
            # Nobody computes any more, so what is counted from here on belongs to the next job.
            job.run(7)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        crew.close()


@pytest.mark.parametrize("forgets", [False, True], ids=["closed", "forgotten"])
def test_the_threads_of_a_crew_end_with_it(forgets: bool) -> None:
    crew = SemaphoreCrew(5, "ending")
    Counter(crew).run(20)
    own = [thread for thread in threading.enumerate() if thread.name.startswith("ending-")]
    assert len(own) == 4
    if forgets:
        del crew
        gc.collect()
    else:
        crew.close()
        crew.close()
    assert not any(thread.is_alive() for thread in own)


def test_where_a_thread_cannot_start_none_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def start_three(thread: threading.Thread) -> None:
        if thread.name == "short-4":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_three)
    with pytest.raises(RuntimeError, match="can't start"):
        SemaphoreCrew(9, "short")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("short-")]


START = """
import os, sys
from crews import KINDS, Counter
crew = KINDS[sys.argv[1]](4)
job = Counter(crew)
job.run(30)
"""
FORK = """
child = os.fork()
for _ in range(100):
    job.run(30)
if child == 0:
    os._exit(0)
_, status = os.waitpid(child, 0)
sys.exit(status)
"""


def script(text: str, *arguments: str) -> Ended:
    return process(["-c", text, *arguments], PYTHONPATH=f"{REPOSITORY}:{REPOSITORY}/tests/support")


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_ends_although_its_crew_is_not_closed(kind: str) -> None:
    ended = script(START, kind)
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.parametrize("kind", KINDS)
def test_a_crew_works_on_both_sides_of_a_fork(kind: str) -> None:
    assert script(START + FORK, kind).code == 0


CHOICE = """
import platform, sys
from cleave.crew import crew
from cleave.threads import own_process
if sys.argv[1] == "one pool":
    own_process()
if sys.argv[2] == "elsewhere":
    platform.system = lambda: "elsewhere"
print(type(crew.make_crew(2, "x")).__name__)
"""


@pytest.mark.parametrize(
    ("pools", "system", "kind"),
    [
        ("one pool", "here", "BorrowedCrew" if can_borrow() else "SemaphoreCrew"),
        ("one pool", "elsewhere", "PoolCrew"),
        ("many pools", "here", "SemaphoreCrew"),
        ("many pools", "elsewhere", "PoolCrew"),
    ],
)
def test_the_crew_is_the_one_that_suits_the_process(pools: str, system: str, kind: str) -> None:
    assert script(CHOICE, pools, system).out.split() == [kind]


REFUSED = """
import os, sys
from cleave.crew import callback, crew
from cleave.threads import own_process
own_process()
if sys.argv[1] == "no files in memory":
    def memfd_create(name):
        raise OSError(1, "not permitted")
    os.memfd_create = memfd_create
elif sys.argv[1] == "no such version":
    callback._API = 1 << 20
else:
    import onnxruntime
    onnxruntime.InferenceSession = lambda *arguments, **options: 1 / 0
made = crew.make_crew(2, "attention")
print(type(made).__name__)
"""


borrowing = pytest.mark.skipif(not can_borrow(), reason="threads are borrowed on Linux for x86-64 only")


@borrowing
@pytest.mark.parametrize("why", ["no files in memory", "no such version", "no session"])
def test_where_threads_cannot_be_borrowed_that_is_said(why: str) -> None:
    ended = script(REFUSED, why)
    assert ended.out.split() == ["SemaphoreCrew"]
    assert "ONNX Runtime does not lend its threads, so attention gets its own" in ended.err


@pytest.fixture
def callbacks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What becomes of callbacks and of the sessions that call into them, in order."""
    seen: list[str] = []
    end = Callback.close

    def close(self: Callback) -> None:
        if self._domain:
            gc.collect()
            seen.append("callback")
        end(self)

    made = ort.InferenceSession

    def session(*arguments: Any, **options: Any) -> Any:
        result = made(*arguments, **options)
        weakref.finalize(result, seen.append, "session")
        return result

    monkeypatch.setattr(Callback, "close", close)
    monkeypatch.setattr(ort, "InferenceSession", session)
    return seen


@borrowing
@pytest.mark.parametrize("how", ["closed", "forgotten", "forgotten in a circle"])
def test_a_borrowed_crew_ends_its_session_and_then_what_that_calls(how: str, callbacks: list[str]) -> None:
    crew: Any = KINDS["borrowed"](3)
    Counter(crew).run(20)
    if how == "closed":
        crew.close()
        crew.close()
    elif how == "forgotten in a circle":
        crew.itself = crew
    del crew
    gc.collect()
    assert callbacks == ["session", "callback"]


@borrowing
def test_where_the_session_fails_its_callback_is_closed(
    callbacks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("no session today")

    monkeypatch.setattr(ort, "InferenceSession", fail)
    with pytest.raises(EngineError, match=r"ONNX Runtime .* cannot run an operator: no session today"):
        KINDS["borrowed"](3)
    assert callbacks == ["callback"]
