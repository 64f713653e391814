"""The errors that Cleave raises on purpose; everything else is a bug."""

import importlib.metadata
import re

_LONGEST_REASON = 240


class CleaveError(Exception):
    """Base of every error that a user can mend.

    The message says what was given, what is allowed, what to do.
    """


class CheckpointError(CleaveError):
    """The model directory is missing, is not a checkpoint, or has an architecture that cannot be cut."""


class ExportError(CleaveError):
    """The export cannot start or cannot go on; the artifact on disk is as it was before."""


class ArtifactError(CleaveError):
    """The artifact is missing, incomplete, altered, or of a format that this version does not read."""


class EngineError(CleaveError):
    """The engine kind is unknown, not installed, or cannot run this artifact."""


class CacheError(CleaveError):
    """The engine cache cannot be read or written, or lacks an engine that may not be built now."""


class AttentionError(CleaveError):
    """The attention server was asked for something that it cannot do."""


class OutOfPages(AttentionError):
    """The step needs more KV pages than are free. Nothing was allocated."""


class RequestError(CleaveError):
    """The request itself is not allowed: empty, too long, or with tokens or parameters out of range."""


class PlanError(CleaveError):
    """The model does not fit the memory that it is given, or the memory plan cannot be made."""


class CompareError(CleaveError):
    """There is nothing to compare, or the two sides are not of one model."""


class BenchError(CleaveError):
    """The measurement asked for is not possible: it does not fit, or the server does not answer."""


class ServerError(CleaveError):
    """The server cannot start: its port is taken, or its settings are not allowed."""


class MissingPackage(CleaveError):
    """An optional package is not installed; the message is the line that installs what the extra needs."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}: pip install {_requirements(extra) or package}")


def _requirements(extra: str) -> str:
    """What the extra `extra` of the installed cleave asks for, quoted for a shell."""
    try:
        lines = importlib.metadata.requires("cleave") or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    wanted = re.compile(rf"""extra\s*==\s*["']{re.escape(extra)}["']""")
    found = (line.partition(";") for line in lines)
    return " ".join(f"'{requirement.strip()}'" for requirement, _, marker in found if wanted.search(marker))


def reason(error: BaseException) -> str:
    """What another library's error says, in one line that is short enough to be quoted in a sentence."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."
