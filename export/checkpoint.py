"""A checkpoint on disk: config.json, safetensors, tokenizer."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

from cleave.errors import CheckpointError, reason
from cleave.export.families import check_architecture
from cleave.export.manifest import MANIFEST
from cleave.export.packed_linear import is_packed
from cleave.export.quantized_checkpoint import QuantizedCheckpoint
from cleave.export.quantized_checkpoint_config import QuantizationConfig
from cleave.export.tensorfile import StoredTensor, read_header

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]
_SAMPLE = 4096
_BLOCK = 1 << 24


class Checkpoint:
    """A model directory in Hugging Face format. Nothing of the weights is read before it is asked for."""

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError for anything that is not a checkpoint that Cleave can cut."""
        self.folder = folder
        config = folder / "config.json"
        if not config.is_file():
            hint = ""
            if (folder / MANIFEST).is_file():
                hint = "; it looks like an artifact, which is exported already"
            raise CheckpointError(f"{folder} is not a checkpoint: it has no config.json{hint}")
        try:
            self.config: dict[str, Any] = json.loads(config.read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{config} is not JSON: {reason(error)}") from None
        if not isinstance(self.config, dict):
            raise CheckpointError(f"{config} does not hold a JSON object")
        self.architecture = check_architecture(self.config.get("architectures"), where=str(folder))
        quantization = self.config.get("quantization_config")
        self.quantization = (
            QuantizationConfig.parse(quantization, where=str(folder)) if quantization else None
        )

    @classmethod
    def find(cls, model: str) -> Checkpoint:
        """Open a directory, or fetch a Hugging Face hub id such as "meta-llama/Llama-2-7b-hf".

        Raises CheckpointError where neither exists.
        """
        folder = Path(model).expanduser()
        if folder.is_dir():
            return cls(folder)
        if folder.exists():
            raise CheckpointError(f"{model} is a file; give the model directory, the one with config.json")
        if not is_hub_id(model):
            raise CheckpointError(f"there is no model directory {model}")
        return cls(_from_hub(model))

    @cached_property
    def layers(self) -> int:
        """Decoder layers that the checkpoint has."""
        layers = self.config.get("num_hidden_layers")
        if not isinstance(layers, int) or layers < 1:
            raise CheckpointError(f"num_hidden_layers in {self.folder / 'config.json'} is {layers!r}")
        return layers

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """Every tensor of every safetensors file, by name. Only the headers are read."""
        files = self._safetensors()
        tensors: dict[str, StoredTensor] = {}
        for file in files:
            tensors |= read_header(file)
        if not tensors:
            raise CheckpointError(f"{self.folder} has no tensors in its safetensors files")
        return tensors

    @cached_property
    def ready(self) -> QuantizedCheckpoint | None:
        """The matrices of a GPTQ or AWQ checkpoint; None for a checkpoint that is not quantised.

        Raises CheckpointError where the tensors of a quantised layer do not fit together.
        """
        if self.quantization is None:
            return None
        return QuantizedCheckpoint(self.quantization, self.tensors, folder=self.folder)

    @cached_property
    def dtype(self) -> str:
        """The checkpoint's own dtype, by its largest tensor: "float32", "float16" or "bfloat16".

        Packed integers do not count.
        """
        names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
        tensors = [
            tensor for tensor in self.tensors.values() if self.quantization is None or tensor.dtype in names
        ]
        largest = max(tensors or self.tensors.values(), key=lambda tensor: tensor.nbytes)
        if largest.dtype not in names:
            raise CheckpointError(
                f"the weights of {self.folder} are {largest.dtype}; Cleave reads {', '.join(names)}"
            )
        return names[largest.dtype]

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight by its name; a packed matrix is [out, in], and called as a plain one."""
        plain = {name: tensor.shape for name, tensor in self.tensors.items()}
        if self.ready is None:
            return plain
        packed = {**self.ready.shapes, **self.ready.dequantized_shapes}
        return {name: shape for name, shape in plain.items() if not is_packed(name)} | packed

    def tensor(self, name: str) -> StoredTensor:
        """Raises CheckpointError where the checkpoint lacks the tensor."""
        found = self.tensors.get(name)
        if found is None:
            raise CheckpointError(f"{self.folder} lacks the tensor {name}; is the checkpoint complete?")
        return found

    def same_values(self, name: str, other: str) -> bool:
        """Whether two tensors are equal byte for byte."""
        first, second = self.tensor(name), self.tensor(other)
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            return False
        with first.file.open("rb") as one, second.file.open("rb") as two:
            one.seek(first.offset)
            two.seek(second.offset)
            left = first.nbytes
            while left:
                size = min(_BLOCK, left)
                if one.read(size) != two.read(size):
                    return False
                left -= size
        return True

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over config.json, the tensors' names, dtypes and shapes, and 4 KiB of each tensor.

        It tells fine-tunes of one model apart without reading all of the weights.
        """
        digest = hashlib.sha256((self.folder / "config.json").read_bytes())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
            with tensor.file.open("rb") as file:
                file.seek(tensor.offset + max(0, tensor.nbytes - _SAMPLE) // 2)
                digest.update(file.read(min(_SAMPLE, tensor.nbytes)))
        return digest.hexdigest()

    def require_safetensors(self) -> None:
        """Raises CheckpointError where the weights are a pickle, or not there at all."""
        self._safetensors()

    def _safetensors(self) -> list[Path]:
        index = self.folder / "model.safetensors.index.json"
        if index.is_file():
            try:
                names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
                raise CheckpointError(f"{index} is not an index of safetensors files") from None
            files = [self.folder / str(name) for name in names]
            for file in files:
                if file.parent != self.folder:
                    raise CheckpointError(f"{index} points out of the checkpoint, to {file}")
                if not file.is_file():
                    raise CheckpointError(f"{self.folder} lacks {file.name}, which its index names")
            return files
        files = sorted(self.folder.glob("*.safetensors"))
        if files:
            return files
        pickles = sorted(file.name for pattern in _PICKLES for file in self.folder.glob(pattern))
        if pickles:
            raise CheckpointError(
                f"{self.folder} has its weights as a pickle ({pickles[0]}), which can run code when read; "
                "Cleave reads safetensors only: load it once with transformers and save_pretrained() it"
            )
        raise CheckpointError(f"{self.folder} has no safetensors file")


def is_hub_id(model: str) -> bool:
    """Whether a name of no directory can be a Hugging Face hub id."""
    return not model.startswith((".", "/", "~")) and model.count("/") == 1


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{model} is no directory here, and the Hugging Face hub did not give it: {reason(error)}"
        ) from None
