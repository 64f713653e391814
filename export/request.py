"""What to export, and which values are allowed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from cleave.errors import ExportError
from cleave.export.manifest import DTYPES, PARTS
from cleave.export.quantization import DEFAULT_GROUP_SIZE, Quantization

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What to export. None means: as the artifact that is there has it, else as the checkpoint has it."""

    model: str
    """Model directory or Hugging Face hub id."""
    output_dir: Path
    parts: tuple[str, ...] = PARTS
    num_layers: int | None = None
    """Export only the first layers."""
    dtype: str | None = None
    device: str = "cpu"
    """Where the check runs: "cpu" or "cuda". Tracing needs no device."""
    check: bool = True
    """Compare the exported graphs with transformers before they are published."""
    quantize: str | None = None
    """"int8" or "int4"."""
    group_size: int | None = None
    """For int4; None: 32."""
    quantize_lm_head: bool | None = None
    """None: as the layers."""
    quantize_embedding: bool | None = None
    """To int8 by rows; None: no."""
    quality: bool = True
    """Measure what quantising costs before the artifact is published."""
    calibration: Path | None = None
    """Text to measure on; None: the bundled one."""
    max_kl: float | None = None
    """Largest KL divergence from float32, in nats a token; None: `cleave.export.quality.MAX_KL`."""
    force: bool = False
    """Publish the artifact however far it is from float32."""

    def __post_init__(self) -> None:
        """Raises ExportError for values that are not allowed. Paths may be given as text."""
        object.__setattr__(self, "model", str(self.model))
        object.__setattr__(self, "output_dir", Path(self.output_dir).expanduser())
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            raise ExportError(
                f"there is no part {', '.join(unknown) or '(none)'}; parts are {', '.join(PARTS)}"
            )
        check_dtype(self.dtype)
        check_device(self.device)
        if self.quantize is not None:
            _ = self.quantization
        self._check_quality()

    def _check_quality(self) -> None:
        if self.calibration is not None:
            object.__setattr__(self, "calibration", Path(self.calibration).expanduser())
        # Not "< 0": nothing compares with NaN.
        if self.max_kl is not None and not 0 <= self.max_kl < math.inf:
            raise ExportError(f"max_kl is {self.max_kl}; it must be a number of nats, 0 or more, such as 0.1")
        if self.quality_options and not self.quality:
            raise ExportError(f"{self.quality_options[0]} needs the measurement; leave --no_quality out")

    @property
    def quality_options(self) -> tuple[str, ...]:
        """Options that were given, and mean something only where the quality is measured."""
        given = {"calibration": self.calibration, "max_kl": self.max_kl, "force": self.force or None}
        return tuple(name for name, value in given.items() if value is not None)

    @property
    def quantization(self) -> Quantization | None:
        """What `quantize` and the options beside it ask for. Raises ExportError where they do not fit."""
        if self.quantize is None:
            return None
        group_size = self.group_size
        if self.quantize == "int4" and group_size is None:
            group_size = DEFAULT_GROUP_SIZE
        lm_head = True if self.quantize_lm_head is None else self.quantize_lm_head
        return Quantization(
            self.quantize, group_size, lm_head=lm_head, embedding=bool(self.quantize_embedding)
        )

    @property
    def whole(self) -> bool:
        """Whether every part is asked for; such an export replaces all that was there."""
        return set(self.parts) == set(PARTS)


def check_dtype(dtype: str | None) -> None:
    """Raises ExportError for a dtype that an artifact cannot have; None is allowed."""
    if dtype is not None and dtype not in DTYPES:
        raise ExportError(f"dtype {dtype} is not known; dtypes are {', '.join(DTYPES)}")


def check_device(device: str) -> None:
    """Raises ExportError for a device of unknown name, or where torch sees none of it."""
    if device not in DEVICES:
        raise ExportError(f"device {device} is not known; devices are {', '.join(DEVICES)}")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ExportError("device cuda was asked for, and torch sees no GPU; use --device cpu")


def check_layers(num_layers: int | None, *, model: str, layers: int) -> None:
    """Raises ExportError for a number of layers that the checkpoint does not have; None is allowed."""
    if num_layers is not None and not 1 <= num_layers <= layers:
        raise ExportError(f"num_layers is {num_layers}; {model} has {layers} layers")
