"""How a plugin finds its attention server: by what was bound when TensorRT made it, in that thread.

An engine holds no handle, and TensorRT has one registry of plugin creators for the whole process. So the
host of an engine is bound while the engine is deserialised and its contexts are created; the plugins that
are made meanwhile carry it, and so do their clones.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any, Protocol

from cleave.errors import AttentionError


class Server(Protocol):
    """The part of the attention server that a plugin needs."""

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        """See `cleave.kvcache.server.AttentionServer.run`."""


class Host:
    """What the plugins of one engine share: the attention server of the run under way, and its first error.

    Used by one thread at a time, as its engine is.
    """

    def __init__(self) -> None:
        self._server: Server | None = None
        self._error: BaseException | None = None

    @property
    def server(self) -> Server:
        """The attention server of the run under way. Raises AttentionError where there is none."""
        if self._server is None:
            raise AttentionError(
                "a CleaveAttention plugin ran with no attention server; run the engine inside "
                "`with host.serving(server):`"
            )
        return self._server

    def fail(self, error: BaseException) -> None:
        """Keep the first error of a plugin: TensorRT itself only passes on that there was one."""
        self._error = self._error or error

    @contextlib.contextmanager
    def serving(self, server: Server | None) -> Iterator[None]:
        """Hand what plugins get to `server` for the time of a run, or build with none.

        What went wrong in a plugin is raised at the end, in place of TensorRT's own "it failed".
        """
        self._server, self._error = server, None
        try:
            yield
        except Exception as error:
            if self._error is None:
                raise
            raise self._error from error
        else:
            if self._error is not None:
                raise self._error
        finally:
            self._server = self._error = None


_bound: contextvars.ContextVar[Host | None] = contextvars.ContextVar("cleave_tensorrt_host", default=None)


@contextlib.contextmanager
def bound(host: Host) -> Iterator[None]:
    """Plugins that TensorRT makes inside this context (of this thread or task) belong to `host`."""
    token = _bound.set(host)
    try:
        yield
    finally:
        _bound.reset(token)


def current() -> Host | None:
    """The host that is bound here."""
    return _bound.get()
