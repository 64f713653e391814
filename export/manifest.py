"""manifest.json: what an artifact is, part by part and file by file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cleave.errors import ArtifactError, AttentionError, ExportError, reason
from cleave.export.quantization import Quantization
from cleave.plugins.spec import AttentionSpec

MANIFEST = "manifest.json"
FORMAT = 2
"""A quantised artifact has 2, so that versions that know nothing of it refuse it; others stay at 1."""
PARTS = ("batchful", "prefill_batchless", "decode_batchless", "embed_tokens", "tokenizer")
"""What `--export` takes; an artifact is complete when it has all of them."""
DTYPES = ("float32", "float16", "bfloat16")
EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"
"""What the two are called in a checkpoint; one that ties them has the first alone."""
SIZES = ("hidden_size", "vocab_size", "max_position_embeddings")
"""Entries of the config that every manifest has, whether config.json names them or not."""
_WHOLE = ("heads", "kv_heads", "head_dim", "window", "rotary_dim", "original_max_position")


@dataclass(frozen=True, slots=True)
class FileDigest:
    """One file of the artifact as it was written."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The contents of manifest.json."""

    architecture: str
    source: str
    """The checkpoint as the user named it."""
    fingerprint: str
    """Tells checkpoints apart; parts of two of them do not mix."""
    dtype: str
    num_layers: int
    config: dict[str, Any]
    """The checkpoint's config.json, and `SIZES`."""
    specs: tuple[AttentionSpec, ...]
    """The distinct attention specs."""
    spec_of_layer: tuple[int, ...]
    embedding: str
    """Name of the embedding tensor [vocab, hidden] in weights.safetensors."""
    embedding_scale: float = 1.0
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Part -> the files that it needs."""
    files: dict[str, FileDigest] = field(default_factory=dict)
    libraries: dict[str, str] = field(default_factory=dict)
    quantization: Quantization | None = None
    check: dict[str, Any] = field(default_factory=dict)
    """How far the exported graphs are from transformers; empty where that was not measured."""
    quality: dict[str, Any] = field(default_factory=dict)
    """What quantising costs; see `cleave.export.quality.Quality`. Empty where that was not measured."""

    @property
    def layer_specs(self) -> tuple[AttentionSpec, ...]:
        """The attention spec of every layer."""
        return tuple(self.specs[index] for index in self.spec_of_layer)

    @property
    def missing_parts(self) -> tuple[str, ...]:
        """Parts that have not been exported yet."""
        return tuple(part for part in PARTS if part not in self.parts)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return int(self.config["hidden_size"])

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding and columns of the logits."""
        return int(self.config["vocab_size"])

    @property
    def max_position(self) -> int:
        """The context: how many tokens a sequence may have."""
        return int(self.config["max_position_embeddings"])

    def to_json(self) -> str:
        """The text of manifest.json."""
        data = asdict(self) | {
            "format": FORMAT if self.quantization else 1,
            "specs": [spec.to_dict() for spec in self.specs],
            "cut": {"operator": "cleave::CleaveAttention", "version": 1, "layers": self.num_layers},
        }
        if self.quantization is None:
            del data["quantization"], data["quality"]
        return json.dumps(_without_infinities(data), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: Path) -> Manifest:
        """Read what `to_json` wrote. Raises ArtifactError for another format or a damaged file."""
        try:
            data: Any = json.loads(text)
        except (ValueError, RecursionError):
            raise ArtifactError(f"{where} is damaged (not JSON); export again") from None
        if not isinstance(data, dict) or type(data.get("format")) is not int or data["format"] < 1:
            raise ArtifactError(f"{where} is not the manifest of a Cleave artifact; export again")
        if data["format"] > FORMAT:
            raise ArtifactError(
                f"{where} has format {data['format']}, and this Cleave reads up to {FORMAT}; "
                "upgrade Cleave, or export again with this version"
            )
        try:
            return cls._from_fields(data)
        except KeyError as error:
            raise ArtifactError(f"{where} is damaged (it lacks {reason(error)}); export again") from None
        except (TypeError, ValueError, AttributeError, ArithmeticError, AttentionError, ExportError) as error:
            raise ArtifactError(f"{where} is damaged ({reason(error)}); export again") from None

    @classmethod
    def _from_fields(cls, data: Mapping[str, Any]) -> Manifest:
        manifest = cls(
            architecture=str(data["architecture"]),
            source=str(data["source"]),
            fingerprint=str(data["fingerprint"]),
            dtype=str(data["dtype"]),
            num_layers=_whole("num_layers", data["num_layers"]),
            config=dict(data["config"]),
            specs=tuple(_spec(spec) for spec in data["specs"]),
            spec_of_layer=tuple(_whole("spec_of_layer", index, least=0) for index in data["spec_of_layer"]),
            embedding=str(data["embedding"]),
            embedding_scale=_number("embedding_scale", data["embedding_scale"]),
            parts={str(part): tuple(map(str, files)) for part, files in data["parts"].items()},
            files={str(name): FileDigest(**entry) for name, entry in data["files"].items()},
            libraries=dict(data["libraries"]),
            quantization=Quantization.from_dict(data["quantization"]) if "quantization" in data else None,
            check=dict(data["check"]),
            quality=dict(data.get("quality", {})),
        )
        for size in SIZES:
            _whole(size, manifest.config[size])
        for name, file in manifest.files.items():
            _whole(f"the size of {name}", file.bytes, least=0)
        if manifest.dtype not in DTYPES:
            raise ValueError(f"dtype {manifest.dtype!r}")
        if len(manifest.spec_of_layer) != manifest.num_layers:
            raise ValueError("as many attention specs as layers are needed")
        if max(manifest.spec_of_layer) >= len(manifest.specs):
            raise ValueError("spec_of_layer names an attention spec that is not there")
        for name in (*manifest.files, *(name for files in manifest.parts.values() for name in files)):
            if Path(name).name != name or name in (".", "..", MANIFEST):
                raise ValueError(f"file name {name!r}")
        return manifest


def batchless_files(kind: str, specs: int) -> tuple[str, ...]:
    """File names of the batchless graphs of one kind ("prefill" or "decode"), one per distinct spec."""
    names = [f"{kind}_batchless.onnx"]
    names += [f"{kind}_batchless_{index}.onnx" for index in range(1, specs)]
    return tuple(names)


def _without_infinities(data: Any) -> Any:
    """The same with null for numbers that JSON lacks; a model that broke has such a perplexity."""
    if isinstance(data, dict):
        return {name: _without_infinities(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [_without_infinities(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _whole(name: str, value: Any, *, least: int = 1) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"{name} is {value!r}")
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}")
    return float(value)


def _spec(data: Any) -> AttentionSpec:
    """An attention spec whose numbers are numbers; the rest AttentionSpec checks itself."""
    rope = data["rope"] or {}
    for name, value in (*data.items(), *rope.items()):
        if name in _WHOLE and value is not None:
            _whole(name, value, least=0)
        elif name not in ("rope", "kind", "truncate") and value is not None:
            _number(name, value)
    return AttentionSpec.from_dict(data)
