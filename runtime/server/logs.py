"""The log: one line an event, for people or for machines."""

from __future__ import annotations

import asyncio
import json
import logging
import logging.config
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]


class TextFormatter(logging.Formatter):
    """`time level message name=value ...`"""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback follows where there is one."""
        fields: dict[str, Any] = getattr(record, "fields", {})
        line, _, traceback = super().format(record).partition("\n")
        line += "".join(f" {name}={_plain(value)}" for name, value in fields.items())
        return f"{line}\n{traceback}" if traceback else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON, with its fields beside the message."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


class Ended(logging.Filter):
    """Leaves out requests that the end of the server cut off: uvicorn takes that for an error."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is logged."""
        return record.exc_info is None or not isinstance(record.exc_info[1], asyncio.CancelledError)


def configure(kind: LogFormat, level: str) -> None:
    """Send the logs of Cleave and of uvicorn to standard error."""
    formatter = JsonFormatter if kind == "json" else TextFormatter
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"()": formatter}},
            "filters": {"ended": {"()": Ended}},
            "handlers": {
                "stderr": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["ended"]}
            },
            "loggers": {
                "cleave": {"handlers": ["stderr"], "level": level.upper(), "propagate": False},
                # It says what Cleave says already: where it listens, and every request.
                "uvicorn": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
            },
        }
    )


def _plain(value: object) -> str:
    """A value that stays on its line and can be told from the next one."""
    if isinstance(value, int | float):
        return str(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() and " " not in text else json.dumps(text, ensure_ascii=False)
