"""From the first request to the last: listening, draining, and the exit code."""

from __future__ import annotations

import asyncio
import logging
import socket
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from cleave.errors import ServerError, reason
from cleave.runtime.async_llm import AsyncLLM
from cleave.runtime.server.app import create_app
from cleave.runtime.server.service import Service
from cleave.runtime.server.settings import ServerSettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

EXIT_FAILED = 1
"""The engine could not go on."""
_LOOK = 0.1
"""Seconds between two looks at what cannot call by itself."""
KEPT_OPEN = 75
"""Seconds that a connection without requests stays open: longer than clients (httpx 5, nginx and AWS 60) keep
one, so that they close it, and never send a request into a connection that is being closed."""
_GRACE = 5
"""Seconds for connections to end once every request has its answer."""
_log = logging.getLogger("cleave.server")


def bind(settings: ServerSettings) -> socket.socket:
    """A socket on the port; it listens later. Raises ServerError where the port cannot be had."""
    host, port = settings.host, settings.port
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _unavailable(settings, error) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _unavailable(settings, error) from None
    return listener


class Server(uvicorn.Server):
    """uvicorn's server, but it finishes what it has begun before it ends."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._signals = 0
        self.failed = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A first SIGTERM or SIGINT drains, a second calls off what runs, a third waits for no client."""
        # A signal may come while the main thread holds any lock: nothing but flags is touched here.
        self._signals += 1
        self._service.draining = True
        if self._signals > 2 or (self._signals == 2 and self.should_exit):
            self.should_exit = self.force_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen. Raises ServerError where somebody else was quicker."""
        settings = self._service.settings
        try:
            await super().startup(sockets)
        except OSError as error:
            raise _unavailable(settings, error) from None
        for listener in sockets or ():
            fields = {"url": f"http://{_place(settings.host, listener.getsockname()[1])}"}
            _log.info("listening", extra={"fields": fields})

    async def main_loop(self) -> None:
        """Serve until there is a reason to end, then end well."""
        watch = asyncio.create_task(self._end_well())
        try:
            await super().main_loop()
        finally:
            watch.cancel()

    async def _end_well(self) -> None:
        service = self._service
        while service.is_ready:
            await asyncio.sleep(_LOOK)
            await service.health.look()
        self.failed = service.health.failure is not None
        service.live.end("the engine cannot go on" if self.failed else "the server is shutting down")
        if self.failed:
            fields = {"reason": service.health.failure}
            _log.critical("the engine cannot go on; the server ends", extra={"fields": fields})
        else:
            await self._drain()
        self.should_exit = True

    async def _drain(self) -> None:
        """Let what runs finish, up to a time; the port stays open so that /ready can say why."""
        service = self._service
        fields = {"requests": service.admission.requests, "seconds": service.settings.drain_timeout}
        _log.info("draining", extra={"fields": fields})
        try:
            async with asyncio.timeout(service.settings.drain_timeout):
                while service.admission.requests and self._signals < 2:
                    await asyncio.sleep(_LOOK)
            why = "a second signal came"
        except TimeoutError:
            why = "drain_timeout is over"
        if service.admission.requests:
            fields = {"requests": service.admission.requests}
            _log.warning("%s; what runs is called off", why, extra={"fields": fields})
            service.admission.abort_all()


def serve_model(llm: AsyncLLM, settings: ServerSettings, listener: socket.socket) -> int:
    """Serve until a signal or a failure; gives back the exit code."""
    provider = _trace_provider(settings, llm)
    app = create_app(llm, settings, trace_provider=provider)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEPT_OPEN,
        timeout_graceful_shutdown=_GRACE,
        lifespan="off",
    )
    server = Server(config, app.state.service)
    server.run(sockets=[listener])
    if provider is not None:
        provider.shutdown()
    return EXIT_FAILED if server.failed else 0


def _trace_provider(settings: ServerSettings, llm: AsyncLLM) -> TracerProvider | None:
    """Sends spans where the settings say. Raises MissingPackage where the extra is not installed."""
    if settings.otlp_endpoint is None:
        return None
    from cleave.runtime.server.tracing import otlp_provider

    return otlp_provider(settings.otlp_endpoint, settings.model_name or llm.model.folder.name)


def _unavailable(settings: ServerSettings, error: OSError) -> ServerError:
    return ServerError(
        f"{_place(settings.host, settings.port)} cannot be listened on ({reason(error)}); "
        "choose another --port or --host, or end what uses it"
    )


def _place(host: str, port: int) -> str:
    """As a URL has it: addresses of IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
