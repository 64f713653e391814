"""What config.json says of a checkpoint that is quantised already: GPTQ or AWQ, and how it is packed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cleave.errors import CheckpointError
from cleave.export.quantized import GROUP_SIZES

WHOLE_ROW = -1
"""The group size that means one scale for all inputs of an output."""

_BITS = 4
_INSTEAD = "give such a checkpoint, or the unquantised one"
_FORMATS = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",)}
"""Method -> the packings of it that are read, the default first."""


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """How the linear layers of a checkpoint are quantised: four bits, in groups of inputs."""

    method: str
    """ "gptq" or "awq"."""
    packing: str
    """ "gptq", "gptq_v2" or "gemm": which values share an int32, and how zero points are stored."""
    group_size: int
    """Inputs that share a scale and a zero point; -1: all of them."""
    symmetric: bool
    """Whether every zero point is the middle of the range, 8."""
    act_order: bool
    """Whether the groups of inputs may stand in any order; a g_idx says which input is of which group."""

    @classmethod
    def parse(cls, data: object, *, where: str) -> QuantizationConfig:
        """Read the entry quantization_config of a config.json.

        Raises CheckpointError for a method, packing, width or group size that is not read.
        """
        if not isinstance(data, Mapping):
            raise CheckpointError(f"{where}: quantization_config is {data!r}; an object was expected")
        method = str(data.get("quant_method", "")).lower()
        if method not in _FORMATS:
            raise CheckpointError(
                f"{where} is quantised ({data.get('quant_method')}); Cleave reads {' and '.join(_FORMATS)}: "
                f"{_INSTEAD}"
            )
        bits = _first(data, "bits", "w_bit")
        if bits != _BITS or isinstance(bits, bool):
            raise CheckpointError(
                f"{where} has {method} weights of {bits} bits; Cleave reads {_BITS} bits: {_INSTEAD}"
            )
        packing = str(_first(data, "checkpoint_format", "version", "format") or _FORMATS[method][0]).lower()
        if packing not in _FORMATS[method]:
            raise CheckpointError(
                f"{where} is packed as {packing!r}; of {method} Cleave reads "
                f"{' and '.join(_FORMATS[method])}: {_INSTEAD}"
            )
        group_size = _first(data, "group_size", "q_group_size")
        if group_size not in (*GROUP_SIZES, WHOLE_ROW) or not isinstance(group_size, int):
            raise CheckpointError(
                f"{where} has groups of {group_size!r}; Cleave reads groups of "
                f"{', '.join(map(str, GROUP_SIZES))}, and {WHOLE_ROW} (a whole row): {_INSTEAD}"
            )
        _refuse_exceptions(data.get("dynamic"), bits=_BITS, group_size=group_size, where=where)
        is_gptq = method == "gptq"
        return cls(
            method=method,
            packing=packing,
            group_size=group_size,
            symmetric=bool(data.get("sym", True)) if is_gptq else not data.get("zero_point", True),
            act_order=is_gptq and bool(data.get("desc_act", False)),
        )

    @property
    def stored_zero_offset(self) -> int:
        """What is missing in a stored zero point: the first GPTQ packing writes one less than it means."""
        return int(self.packing == "gptq")

    def __str__(self) -> str:
        groups = "whole rows" if self.group_size == WHOLE_ROW else f"groups of {self.group_size}"
        return f"{self.method}, {_BITS} bits, {groups}"


def _first(data: Mapping[str, Any], *names: str) -> Any:
    """The first of several names for one thing that is there."""
    return next((data[name] for name in names if data.get(name) is not None), None)


def _refuse_exceptions(dynamic: object, *, bits: int, group_size: int, where: str) -> None:
    """GPTQModel's rules for single modules may leave modules out, but not quantise them in another way."""
    usual = {"bits": bits, "group_size": group_size}
    rules = dynamic.items() if isinstance(dynamic, Mapping) else ()
    for pattern, rule in rules:
        changed = rule.items() if isinstance(rule, Mapping) else ()
        for name, value in changed:
            if name in usual and value != usual[name]:
                raise CheckpointError(
                    f"{where} has {name} {value} for {pattern}, and {usual[name]} elsewhere; "
                    "Cleave reads checkpoints with one of them for all modules"
                )
