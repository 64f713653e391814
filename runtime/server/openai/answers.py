"""What both kinds of answers have in common: usage, and how they end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cleave.runtime.request import Completion, FinishReason
from cleave.runtime.server.errors import Failure, Refused
from cleave.runtime.server.job import Job


def usage(job: Job) -> dict[str, Any]:
    """The tokens of a job that has ended."""
    cached = sum(stream.completions()[0].cached_tokens for stream in job.streams)
    return {
        "prompt_tokens": job.prompt_tokens,
        "completion_tokens": job.generated_tokens,
        "total_tokens": job.prompt_tokens + job.generated_tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def failure(finish_reason: FinishReason | None, error: str | None) -> Failure | None:
    """Why an answer did not end well; None where it did, or was called off by the client."""
    if error is None:
        return None
    return Failure("generation" if finish_reason == "error" else "incomplete", error)


def check(completions: Sequence[Completion]) -> None:
    """Raises Refused where one of them did not end well."""
    for completion in completions:
        found = failure(completion.finish_reason, completion.error)
        if found is not None:
            raise Refused(found.kind, found.message)
