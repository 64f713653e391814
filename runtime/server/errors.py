"""Errors on their way to a client: one form for each dialect."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from cleave.errors import EngineError, RequestError

Dialect = Literal["openai", "tgi"]
Kind = Literal[
    "validation",
    "syntax",
    "media_type",
    "too_large",
    "unauthorized",
    "not_found",
    "model_not_found",
    "method",
    "conflict",
    "overloaded",
    "unavailable",
    "unhealthy",
    "generation",
    "incomplete",
    "internal",
]

_OPENAI: Mapping[Kind, tuple[int, str, str | None]] = {
    "validation": (400, "invalid_request_error", None),
    "syntax": (400, "invalid_request_error", None),
    "media_type": (415, "invalid_request_error", None),
    "too_large": (413, "invalid_request_error", "request_too_large"),
    "unauthorized": (401, "authentication_error", "invalid_api_key"),
    "not_found": (404, "invalid_request_error", "not_found"),
    "model_not_found": (404, "invalid_request_error", "model_not_found"),
    "method": (405, "invalid_request_error", None),
    "conflict": (409, "invalid_request_error", "request_id_in_use"),
    "overloaded": (429, "rate_limit_error", "overloaded"),
    "unavailable": (503, "server_error", "unavailable"),
    "unhealthy": (503, "server_error", "unhealthy"),
    "generation": (500, "server_error", "generation"),
    "incomplete": (500, "server_error", "incomplete_generation"),
    "internal": (500, "server_error", None),
}
"""Kind -> status, type and code, as OpenAI's API has them."""
_TGI_STATUS: Mapping[Kind, int] = {"validation": 422, "generation": 424}
"""Where text-generation-inference has another status."""
_TGI_TYPE: Mapping[Kind, str] = {
    "unhealthy": "healthcheck",
    "incomplete": "incomplete_generation",
    "model_not_found": "not_found",
}
"""Where its error_type has another name than the kind."""
_TGI_PREFIX: Mapping[Kind, str] = {
    "validation": "Input validation error: ",
    "generation": "Request failed during generation: Server error: ",
}
_TGI_MESSAGE: Mapping[Kind, str] = {
    "overloaded": "Model is overloaded",
    "incomplete": "Incomplete generation",
    "unhealthy": "unhealthy",
}
"""Messages that its clients know by heart."""
_ARM = re.compile(r"str|list\[.*\]")
"""What pydantic puts into a place where a field may be of several types."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request was not answered."""

    kind: Kind
    message: str
    param: str | None = None
    """The field of the request that is to blame."""
    headers: Mapping[str, str] = field(default_factory=dict)

    def status(self, dialect: Dialect) -> int:
        """The HTTP status."""
        status = _OPENAI[self.kind][0]
        return _TGI_STATUS.get(self.kind, status) if dialect == "tgi" else status

    def body(self, dialect: Dialect) -> dict[str, Any]:
        """The JSON object that tells of it."""
        if dialect == "tgi":
            message = _TGI_MESSAGE.get(self.kind) or _TGI_PREFIX.get(self.kind, "") + self.message
            return {"error": message, "error_type": _TGI_TYPE.get(self.kind, self.kind)}
        _, kind, code = _OPENAI[self.kind]
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": code}}

    def response(self, dialect: Dialect) -> Response:
        """The answer to a request of which nothing was answered yet."""
        content = json.dumps(self.body(dialect), ensure_ascii=False).encode("utf-8", "replace")
        return Response(content, self.status(dialect), dict(self.headers), "application/json")

    def event(self, dialect: Dialect) -> bytes:
        """The server-sent event for a stream that has begun."""
        content = json.dumps(self.body(dialect), ensure_ascii=False).encode("utf-8", "replace")
        return b"data: " + content + b"\n\n"


class Refused(Exception):
    """Ends the handling of a request with a failure."""

    def __init__(self, kind: Kind, message: str, *, param: str | None = None, **headers: str) -> None:
        super().__init__(message)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        self.failure = Failure(kind, message, param, names)


def dialect_of(path: str) -> Dialect:
    """Whose form an error under this path has."""
    return "openai" if path == "/v1" or path.startswith("/v1/") else "tgi"


def failure_of(error: Exception) -> Failure:
    """What to tell the client; everything that is not known here is a bug and says nothing of itself."""
    if isinstance(error, Refused):
        return error.failure
    if isinstance(error, RequestError):
        return Failure("validation", str(error))
    if isinstance(error, EngineError):
        return Failure("unavailable", str(error))
    if isinstance(error, RequestValidationError):
        return _invalid(error.errors())
    if isinstance(error, HTTPException):
        return _http(error)
    return Failure("internal", "the server has a bug; its log says more under this request's id")


def _invalid(errors: Sequence[Any]) -> Failure:
    """The first of pydantic's complaints, as one sentence."""
    first = errors[0]
    place = [str(part) for part in first["loc"][1:]]
    name = ".".join(place)
    if first["type"] == "json_invalid":
        return Failure("syntax", f"the body is not JSON: {first['ctx']['error']} at character {name}")
    if isinstance(first.get("input"), bytes):
        return Failure("media_type", "the body must be JSON; send it with Content-Type: application/json")
    if first["type"] == "extra_forbidden":
        return Failure("validation", f"{name} is not a parameter that is known here; leave it out", name)
    if first["type"] == "missing":
        return Failure("validation", f"{name or 'the body'} is missing", name or None)
    arm = next((index for index, part in enumerate(place) if _ARM.fullmatch(part)), None)
    if arm is not None:
        # The first arm is text, and is given the whole value.
        shared = first["loc"][: arm + 1]
        arms = dict.fromkeys(str(one["loc"][arm + 1]) for one in errors if one["loc"][: arm + 1] == shared)
        name = ".".join(place[:arm])
        return Failure(
            "validation", f"{name} is {first['input']!r:.80}; it must be {' or '.join(arms)}", name
        )
    message = f"{first['msg']}".removeprefix("Value error, ")
    given = f"{first['input']!r:.80}" if "input" in first else ""
    return Failure("validation", f"{name or 'the body'} is {given}: {message}", name or None)


def _http(error: HTTPException) -> Failure:
    kinds: Mapping[int, Kind] = {404: "not_found", 405: "method", 413: "too_large", 415: "media_type"}
    if error.status_code == 400:
        return Failure("syntax", "the body is not JSON in UTF-8")
    kind = kinds.get(error.status_code, "internal")
    taken = (error.headers or {}).get("Allow", "another method")
    messages: Mapping[int, str] = {
        404: "there is nothing at this path; /docs lists what there is",
        405: f"this method is not for this path, which takes {taken}; /docs lists what there is",
    }
    message = messages.get(error.status_code, str(error.detail))
    return Failure(kind, message, headers=dict(error.headers or {}))
