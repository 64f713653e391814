"""The artifact: a folder that holds everything needed for serving. Reading it needs no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx

from cleave.errors import ArtifactError
from cleave.export.manifest import MANIFEST, PARTS, FileDigest, Manifest, batchless_files
from cleave.export.tensorfile import StoredTensor, TensorFileError, read_header

BATCHFUL = "batchful.onnx"
WEIGHTS = "weights.safetensors"
_BLOCK = 1 << 24
_NUMPY: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}

Progress = Callable[[str, int, int], None]
"""Called with a file name, the bytes done and the bytes in all."""


class Artifact:
    """An artifact, opened for reading. Nothing is unpickled and nothing outside the folder is read."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = True, progress: Progress | None = None) -> Artifact:
        """Open a complete artifact.

        `verify` compares every file with its SHA-256; without it only sizes are compared. Raises
        ArtifactError, which names the missing part or the file that was altered.
        """
        path = Path(folder).expanduser()
        manifest = read_manifest(path)
        if manifest.missing_parts:
            missing = manifest.missing_parts
            raise ArtifactError(
                f"{path} lacks {', '.join(missing)}; run: cleave export --model {manifest.source} "
                f"--output_dir {path} " + " ".join(f"--export {part}" for part in missing)
            )
        artifact = cls(path, manifest)
        for part in PARTS:
            for name in manifest.parts[part]:
                if name not in manifest.files:
                    raise ArtifactError(f"{path / MANIFEST} has no digest of {name}; export {part} again")
        for name, expected in manifest.files.items():
            artifact._check_file(name, expected, verify=verify, progress=progress)
        return artifact

    def _check_file(
        self, name: str, expected: FileDigest, *, verify: bool, progress: Progress | None
    ) -> None:
        path = self.folder / name
        if not path.is_file():
            raise ArtifactError(f"{path} is missing; export {self._parts_of(name)} again")
        if path.resolve().parent != self.folder.resolve():
            raise ArtifactError(f"{path} is a link out of the artifact; put the file itself there")
        size = path.stat().st_size
        if size != expected.bytes:
            raise ArtifactError(
                f"{path} has {size} bytes where the manifest says {expected.bytes}: "
                f"it is truncated or altered; export {self._parts_of(name)} again"
            )
        if verify and digest_file(path, progress=progress).sha256 != expected.sha256:
            raise ArtifactError(
                f"{path} is altered: its SHA-256 is not that of the manifest; "
                f"export {self._parts_of(name)} again"
            )

    def _parts_of(self, name: str) -> str:
        return " and ".join(part for part, files in self.manifest.parts.items() if name in files) or "it"

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """Every tensor of weights.safetensors, by name."""
        try:
            return read_header(self.folder / WEIGHTS)
        except TensorFileError as error:
            raise ArtifactError(f"{error}; export batchful again") from None

    def weight(self, name: str) -> npt.NDArray[Any]:
        """A weight, mapped from disk: read-only, row-major, in the artifact's dtype."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise ArtifactError(f"{self.folder / WEIGHTS} has no tensor {name}; export batchful again")
        return np.memmap(
            tensor.file, dtype=_NUMPY[tensor.dtype], mode="r", offset=tensor.offset, shape=tensor.shape
        )

    def embedding(self) -> npt.NDArray[Any]:
        """The embedding [vocab, hidden], mapped from disk."""
        return self.weight(self.manifest.embedding)

    def batchful_graph(self) -> onnx.ModelProto:
        """The batchful graph, without weight data.

        Raises ArtifactError where its weights are not those of weights.safetensors.
        """
        graph = load_graph(self.folder / BATCHFUL)
        for tensor in graph.graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            place = {entry.key: entry.value for entry in tensor.external_data}
            stored = self.tensors.get(tensor.name)
            if place.get("location") != WEIGHTS or stored is None:
                raise ArtifactError(
                    f"{self.folder / BATCHFUL} looks for {tensor.name} in {place.get('location')}, "
                    f"and not in {WEIGHTS}; export batchful again"
                )
            if (place.get("offset"), place.get("length")) != (str(stored.offset), str(stored.nbytes)):
                raise ArtifactError(
                    f"{BATCHFUL} and {WEIGHTS} disagree on {tensor.name}; export batchful again"
                )
        return graph

    def batchless_graphs(self) -> list[tuple[Path, Path]]:
        """(prefill, decode) graph of every layer; layers of one attention spec share theirs."""
        count = len(self.manifest.specs)
        pairs = list(zip(batchless_files("prefill", count), batchless_files("decode", count), strict=True))
        return [
            (self.folder / pairs[index][0], self.folder / pairs[index][1])
            for index in self.manifest.spec_of_layer
        ]

    @property
    def tokenizer_file(self) -> Path:
        """tokenizer.json, as the tokenizers library reads it."""
        return self.folder / "tokenizer.json"

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """generation_config.json, or an empty dict where the checkpoint had none."""
        path = self.folder / "generation_config.json"
        if not path.is_file():
            return {}
        data: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return data

    @cached_property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end a sequence; the configs give one, a list, or none."""
        return end_tokens(self.generation_config) or end_tokens(self.manifest.config)


def end_tokens(config: Mapping[str, Any]) -> frozenset[int]:
    """`eos_token_id` of a generation config or model config: one id, a list of them, or none."""
    given = config.get("eos_token_id")
    if given is None:
        return frozenset()
    return frozenset(map(int, given)) if isinstance(given, list) else frozenset({int(given)})


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an artifact that may be incomplete. Raises ArtifactError where there is none."""
    if not folder.is_dir():
        raise ArtifactError(f"there is no artifact at {folder}; make one with: cleave export")
    path = folder / MANIFEST
    if not path.is_file():
        hint = ""
        if (folder / "config.json").is_file():
            hint = "; it looks like a checkpoint, which needs `cleave export` first"
        raise ArtifactError(f"{folder} is not an artifact: it has no {MANIFEST}{hint}")
    return Manifest.from_json(path.read_text("utf-8"), path)


def digest_file(path: Path, *, progress: Progress | None = None) -> FileDigest:
    """SHA-256 and size of a file, read block by block."""
    digest = hashlib.sha256()
    total, done = path.stat().st_size, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress(path.name, done, total)
    return FileDigest(digest.hexdigest(), done)


def load_graph(path: Path) -> onnx.ModelProto:
    """An ONNX graph without its external data. Raises ArtifactError where the file is damaged."""
    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError has no public name of its own
        raise ArtifactError(f"{path} is not an ONNX graph ({error}); export again") from None
