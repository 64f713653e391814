"""Which version of Cleave this is."""

from __future__ import annotations

import importlib.metadata
from functools import cache

UNKNOWN = "0+unknown"


@cache
def version() -> str:
    """The version as it was installed; UNKNOWN where Cleave is used from its folder."""
    try:
        return importlib.metadata.version("cleave")
    except importlib.metadata.PackageNotFoundError:
        return UNKNOWN
