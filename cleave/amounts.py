"""Amounts of memory as people write them."""

from __future__ import annotations

import re

from cleave.errors import PlanError

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_AMOUNT = re.compile(r"\s*(\d{1,18}(?:\.\d+)?)\s*([a-zA-Z]+)\s*")
_NUMBER = re.compile(r"\s*\d{1,18}\s*")
_ALLOWED = "a number and a unit, such as 24GiB (KiB, MiB, GiB, TiB, or KB, MB, GB, TB)"


def parse_memory(text: str) -> int:
    """Bytes of an amount with its unit. Raises PlanError for anything else."""
    count = _amount(text)
    if count is None:
        raise PlanError(f"memory is {text!r}; give {_ALLOWED}")
    return count


def parse_kv_cache_bytes(text: str) -> int:
    """Bytes of an amount with its unit, or of a number of bytes. Raises PlanError for anything else."""
    count = int(text) if _NUMBER.fullmatch(text) else _amount(text)
    if count is None:
        raise PlanError(f"kv_cache_bytes is {text!r}; give a number of bytes, or {_ALLOWED}")
    return count


def _amount(text: str) -> int | None:
    match = _AMOUNT.fullmatch(text)
    if match is None or match.group(2).upper() not in _UNITS:
        return None
    return int(float(match.group(1)) * _UNITS[match.group(2).upper()])
