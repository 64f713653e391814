"""What the tests on a GPU share: the demo in every dtype, and a bound on their time."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import FrameType

import pytest

from cleave.runtime.engines.inductor import choose, functions

BOUND = 150
"""Seconds that setting a test up may take, and that the test itself may take."""
AGAIN = 10
"""Seconds after which what still waits is interrupted once more, such as the end of a thread."""


class TooLong(BaseException):
    """A test ran into its bound. No Exception, so that nothing takes it for an error that it handles."""


@contextlib.contextmanager
def bounded(name: str) -> Iterator[None]:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise TooLong(f"{name} took more than {BOUND} seconds")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, BOUND, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    with bounded(f"the setup of {item.name}"):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    with bounded(item.name):
        return (yield)


@pytest.fixture(autouse=True, scope="module")
def own_kernels() -> Iterator[None]:
    """With few rows every layer that has own kernels is computed by the first of them.

    Which one is fastest is not asked: all others need not be compiled, and no build differs from another.
    """
    every = choose._candidates
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "_candidates", lambda layer: every(layer)[1:2] or (None,))
        yield


@pytest.fixture(scope="module")
def few_functions() -> Iterator[None]:
    """Engines are built for one row and for any number of rows, where nothing is asked about few rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functions, "SMALL", functions.SMALL | {"cuda": (1,)})
        patch.setattr(functions, "BANDS", ())
        yield


@pytest.fixture(scope="session")
def demo_in(demo_artifact: Path, quantized_artifact: Callable[..., Path]) -> Callable[[str], Path]:
    """The artifact of the demo in a dtype. Its engines are built once a session, as those of all tests."""

    def get(dtype: str) -> Path:
        return demo_artifact if dtype == "float16" else quantized_artifact("demo", dtype=dtype)

    return get
