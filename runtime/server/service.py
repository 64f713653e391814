"""What the handlers of requests share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from starlette.requests import Request

from cleave.runtime.async_llm import AsyncLLM
from cleave.runtime.server.admission import Admission
from cleave.runtime.server.errors import Refused
from cleave.runtime.server.health import EngineHealth
from cleave.runtime.server.limit_share import LimitShare
from cleave.runtime.server.live import Live
from cleave.runtime.server.metrics import Metrics
from cleave.runtime.server.settings import ServerSettings
from cleave.runtime.server.tgi.timing import QueueTimes
from cleave.version import version


@dataclass(slots=True)
class Service:
    """One model being served."""

    llm: AsyncLLM
    settings: ServerSettings
    admission: Admission
    model_name: str
    health: EngineHealth
    metrics: Metrics
    live: Live
    queue_times: QueueTimes
    draining: bool = False
    """Whether the server is about to end, and takes nothing more."""
    started: float = field(default_factory=time.time)

    @classmethod
    def over(cls, llm: AsyncLLM, settings: ServerSettings) -> Service:
        """A service of a loaded model."""
        limit = llm.model.options.max_sequences + settings.max_queue
        name = settings.model_name or llm.model.folder.name
        share = LimitShare.measured(llm.model) if settings.measure_limits else None
        live = Live(llm, share=share)
        queue_times = QueueTimes()
        llm.observe(queue_times)
        return cls(llm, settings, Admission(limit), name, EngineHealth(llm), Metrics(llm), live, queue_times)

    @classmethod
    def of(cls, request: Request) -> Service:
        """The service that a request came to."""
        service: Service = request.app.state.service
        return service

    @property
    def fingerprint(self) -> str:
        """What has to be the same for a seed to give the same answer."""
        return f"cleave-{version()}-{self.llm.model.engine.kind}"

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered."""
        return not self.draining and self.health.failure is None

    def check_open(self) -> None:
        """Raises Refused where nothing more is taken."""
        if self.draining:
            raise Refused("unavailable", "the server is shutting down; ask another one", Retry_After="5")
        if self.health.failure is not None:
            raise Refused("unavailable", f"the engine cannot go on: {self.health.failure}")
