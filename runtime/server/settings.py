"""What the server allows and promises, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Integral, Real

from cleave.errors import ServerError

_COUNTS = {"port": (0, 65535), "max_queue": (0, None), "max_body_bytes": (1, None)}
_SHORTEST_KEY = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How one model is served."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free port."""
    model_name: str | None = None
    """What /v1/models says; None: the name of the artifact's folder."""
    max_queue: int = 256
    """Answers that may wait beyond those that run at once; one more is refused with 429."""
    max_body_bytes: int = 2_000_000
    """Longest request body; a longer one is refused with 413."""
    api_key: str | None = field(default=None, repr=False)
    """What clients have to send as `Authorization: Bearer KEY`; None: nothing."""
    drain_timeout: float = 30.0
    """Seconds that requests under way have after SIGTERM."""
    keep_alive: float = 15.0
    """Seconds after which a silent stream gets a comment, so that proxies keep it open."""
    otlp_endpoint: str | None = None
    """Where spans go, such as "http://localhost:4318/v1/traces"; None: there are none."""
    measure_limits: bool = False
    """Whether to measure at the start what the machine can do, for the page to compare with."""
    log_prompts: bool = False
    """Whether the log has prompts and answers."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call the server from a browser; "*": all."""

    def __post_init__(self) -> None:
        """Raises ServerError for values that are not allowed."""
        for name, (least, most) in _COUNTS.items():
            value = getattr(self, name)
            whole = isinstance(value, Integral) and not isinstance(value, bool)
            if not whole or value < least or (most is not None and value > most):
                allowed = f"at least {least}" if most is None else f"from {least} to {most}"
                raise ServerError(f"{name} is {value!r}; it must be a whole number, {allowed}")
        for name, shortest in (("drain_timeout", 0.0), ("keep_alive", 0.1)):
            value = getattr(self, name)
            if not isinstance(value, Real) or not math.isfinite(value) or value < shortest:
                raise ServerError(
                    f"{name} is {value!r}; it must be a number of seconds, at least {shortest:g}"
                )
        if self.api_key is not None and (len(self.api_key) < _SHORTEST_KEY or not self.api_key.isprintable()):
            # The key itself is not quoted: errors end up in logs.
            raise ServerError(
                f"api_key is too short; it must have at least {_SHORTEST_KEY} printable characters"
            )
