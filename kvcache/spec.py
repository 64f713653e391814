"""What the attention of one layer is: the attention spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from cleave.errors import AttentionError

RopeKind = Literal["default", "linear", "llama3", "yarn"]
ROPE_KINDS: tuple[str, ...] = get_args(RopeKind)


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position encoding (Su et al. 2021, https://arxiv.org/abs/2104.09864), in the halves
    layout of Hugging Face: dimension i is paired with i + rotary_dim / 2.

    `factor` scales the context for every kind but "default". "llama3" uses the two frequency
    factors and the original context (Llama 3.1); "yarn" uses the betas, `attention_factor` and the
    original context (Peng et al. 2023, https://arxiv.org/abs/2309.00071).
    """

    kind: RopeKind
    base: float
    rotary_dim: int
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.kind not in ROPE_KINDS:
            raise AttentionError(f"rope kind {self.kind!r} is not known; there are: {', '.join(ROPE_KINDS)}")
        if self.rotary_dim <= 0 or self.rotary_dim % 2:
            raise AttentionError(f"rotary_dim is {self.rotary_dim}; it must be even and positive")
        if self.base <= 0 or self.factor <= 0:
            raise AttentionError(f"rope base {self.base} and factor {self.factor} must be positive")
        if self.kind in ("llama3", "yarn") and self.original_max_position <= 0:
            raise AttentionError(f"rope kind {self.kind!r} needs original_max_position, the unscaled context")


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """The attention of one layer.

    `scale` multiplies q·k before the softmax. `window` is the number of positions that a query sees,
    its own included (None: all before it). `softcap` c replaces a score s by c·tanh(s / c).
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: RopeSpec | None = None
    window: int | None = None
    softcap: float | None = None

    def __post_init__(self) -> None:
        if min(self.heads, self.kv_heads, self.head_dim) <= 0:
            raise AttentionError(
                f"heads {self.heads}, kv_heads {self.kv_heads} and head_dim {self.head_dim} must be positive"
            )
        if self.heads % self.kv_heads:
            raise AttentionError(f"{self.heads} heads cannot share {self.kv_heads} KV heads evenly")
        if self.rope is not None and self.rope.rotary_dim > self.head_dim:
            raise AttentionError(f"rotary_dim {self.rope.rotary_dim} is larger than head_dim {self.head_dim}")
        if self.window is not None and self.window <= 0:
            raise AttentionError(f"window is {self.window}; it must be positive, or None for full attention")
        if self.softcap is not None and self.softcap <= 0:
            raise AttentionError(f"softcap is {self.softcap}; it must be positive, or None for no cap")

    @property
    def q_size(self) -> int:
        """Width of q and of the output: heads * head_dim."""
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of k and of v: kv_heads * head_dim."""
        return self.kv_heads * self.head_dim

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AttentionSpec:
        """Read what `to_dict` wrote. Raises AttentionError on unknown or missing fields."""
        fields = dict(data)
        try:
            rope = fields.pop("rope", None)
            return cls(**fields, rope=None if rope is None else RopeSpec(**rope))
        except TypeError as error:
            raise AttentionError(f"this is not an attention spec: {error}") from None
