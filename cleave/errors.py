"""The errors that Cleave raises on purpose; everything else is a bug."""


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


class AttentionError(CleaveError):
    """The attention server was asked for something that it cannot do."""


class OutOfPages(AttentionError):
    """The step needs more KV pages than are free. Nothing was allocated."""


class RequestError(CleaveError):
    """The request itself is not allowed: empty, too long, or with tokens or parameters out of range."""


class MissingPackage(CleaveError):
    """An optional package is not installed; the message is the line that installs it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}: pip install 'cleave[{extra}]'")
