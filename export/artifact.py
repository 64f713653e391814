"""The artifact: a folder that holds everything needed for serving. Reading it needs no torch."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from cleave.errors import ArtifactError, reason
from cleave.export.external import external_tensors
from cleave.export.manifest import MANIFEST, PARTS, FileDigest, Manifest, batchless_files
from cleave.export.quantization import SCALE
from cleave.export.tensorfile import StoredTensor, TensorFileError, read_header
from cleave.plugins.schema import is_cut

BATCHFUL = "batchful.onnx"
WEIGHTS = "weights.safetensors"
TOKENIZER = "tokenizer.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
_BLOCK = 1 << 24
_ONNX = {
    "F32": onnx.TensorProto.FLOAT,
    "F16": onnx.TensorProto.FLOAT16,
    "BF16": onnx.TensorProto.BFLOAT16,
    "I8": onnx.TensorProto.INT8,
    "U8": onnx.TensorProto.UINT8,
    "I32": onnx.TensorProto.INT32,
}

Lookup = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
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
                f"{path} lacks {', '.join(missing)}; run: cleave export "
                f"--model {shlex.quote(manifest.source)} --output_dir {shlex.quote(str(path))} "
                + " ".join(f"--export {part}" for part in missing)
            )
        artifact = cls(path, manifest)
        for part in PARTS:
            for name in (*_needed(part, len(manifest.specs)), *manifest.parts[part]):
                if name not in manifest.files:
                    raise ArtifactError(f"{path / MANIFEST} has no digest of {name}; export {part} again")
        for name, expected in manifest.files.items():
            artifact._check_file(name, expected, verify=verify, progress=progress)
        return artifact

    def _check_file(
        self, name: str, expected: FileDigest, *, verify: bool, progress: Progress | None
    ) -> None:
        path = self.folder / name
        try:
            if not path.is_file():
                raise ArtifactError(f"{path} is missing; export {self._parts_of(name)} again")
            _stay_inside(path)
            self._compare(path, expected, verify=verify, progress=progress)
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None

    def _compare(self, path: Path, expected: FileDigest, *, verify: bool, progress: Progress | None) -> None:
        name, size = path.name, path.stat().st_size
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
        """A tensor, mapped from disk: read-only, row-major, in the dtype that it is stored in."""
        tensor = self.tensors.get(name)
        if tensor is None or tensor.dtype not in _ONNX:
            raise ArtifactError(f"{self.folder / WEIGHTS} has no tensor {name}; export batchful again")
        return tensor.mapped()

    def embedding(self) -> npt.NDArray[Any]:
        """The embedding [vocab, hidden] as it is stored, mapped from disk; see `embedding_rows`."""
        table = self.weight(self.manifest.embedding)
        expected = (self.manifest.vocab_size, self.manifest.hidden_size)
        if table.shape != expected:
            raise ArtifactError(
                f"the embedding in {self.folder / WEIGHTS} is {list(table.shape)}, "
                f"and {list(expected)} by {MANIFEST}; export again"
            )
        return table

    def embedding_rows(self) -> Lookup:
        """What gives the rows of token ids: [tokens] int64 -> [tokens, hidden], floats."""
        table = self.embedding()
        if table.dtype != np.int8:
            return table.__getitem__
        scales = self.weight(self.manifest.embedding + SCALE)
        return lambda token_ids: np.asarray(table[token_ids] * scales[token_ids, None])

    def batchful_graph(self) -> onnx.ModelProto:
        """The batchful graph, without weight data.

        Raises ArtifactError where its weights are not those of weights.safetensors, or its cuts not one
        for each layer of the manifest.
        """
        graph = _parse(self.folder / BATCHFUL)
        weights = [tensor for tensor in graph.graph.initializer if tensor.external_data]
        if len(weights) != sum(1 for _ in external_tensors(graph)):
            raise ArtifactError(f"{self.folder / BATCHFUL} keeps data where no weights belong; export again")
        cuts = sum(is_cut(node) for node in graph.graph.node)
        if cuts != self.manifest.num_layers:
            raise ArtifactError(
                f"{self.folder / BATCHFUL} has {cuts} attention operators for the "
                f"{self.manifest.num_layers} layers of the manifest; export batchful again"
            )
        for tensor in weights:
            place = {entry.key: entry.value for entry in tensor.external_data}
            stored = self.tensors.get(tensor.name)
            if place.get("location") != WEIGHTS or stored is None:
                raise ArtifactError(
                    f"{self.folder / BATCHFUL} looks for {tensor.name} in {place.get('location')}, "
                    f"and not in {WEIGHTS}; export batchful again"
                )
            asked = (place.get("offset"), place.get("length"), tensor.data_type, tuple(tensor.dims))
            if asked != (str(stored.offset), str(stored.nbytes), _ONNX.get(stored.dtype), stored.shape):
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
        return self.folder / TOKENIZER

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """generation_config.json, or an empty dict where the checkpoint had none."""
        return self._json(GENERATION_CONFIG)

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        """tokenizer_config.json, or an empty dict where the checkpoint had none."""
        return self._json(TOKENIZER_CONFIG)

    @cached_property
    def chat_template_file(self) -> str | None:
        """The text of chat_template.jinja; None where the checkpoint had none."""
        if CHAT_TEMPLATE not in self.manifest.files:
            return None
        path = self.folder / CHAT_TEMPLATE
        try:
            return path.read_text("utf-8")
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path} is damaged ({reason(error)}); export tokenizer again") from None

    @cached_property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end a sequence; the configs give one, a list, or none."""
        try:
            return end_tokens(self.generation_config) or end_tokens(self.manifest.config)
        except (ValueError, TypeError, ArithmeticError) as error:
            raise ArtifactError(f"{self.folder} has no readable eos_token_id: {reason(error)}") from None

    def _json(self, name: str) -> dict[str, Any]:
        """A JSON file that a checkpoint may have; an empty dict where it had none."""
        if name not in self.manifest.files:
            return {}
        path = self.folder / name
        try:
            return dict(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise ArtifactError(f"{path} is damaged ({reason(error)}); export tokenizer again") from None


def end_tokens(config: Mapping[str, Any]) -> frozenset[int]:
    """`eos_token_id` of a generation config or model config: one id, a list of them, or none."""
    given = config.get("eos_token_id")
    if given is None:
        return frozenset()
    return frozenset(map(int, given)) if isinstance(given, list) else frozenset({int(given)})


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an artifact that may be incomplete. Raises ArtifactError where there is none."""
    path = folder / MANIFEST
    try:
        if not folder.is_dir():
            raise ArtifactError(f"there is no artifact at {folder}; make one with: cleave export")
        if not path.is_file():
            hint = ""
            if (folder / "config.json").is_file():
                hint = "; it looks like a checkpoint, which needs `cleave export` first"
            raise ArtifactError(f"{folder} is not an artifact: it has no {MANIFEST}{hint}")
        _stay_inside(path)
        return Manifest.from_json(path.read_bytes(), path)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None


def _stay_inside(path: Path) -> None:
    """Raises ArtifactError for a file that is a link to another folder."""
    if path.resolve().parent != path.parent.resolve():
        raise ArtifactError(f"{path} is a link out of the artifact; put the file itself there")


def _needed(part: str, specs: int) -> tuple[str, ...]:
    """The files that a part cannot do without."""
    files = {
        "batchful": (BATCHFUL, WEIGHTS),
        "embed_tokens": (WEIGHTS,),
        "tokenizer": (TOKENIZER,),
        "prefill_batchless": batchless_files("prefill", specs),
        "decode_batchless": batchless_files("decode", specs),
    }
    return files[part]


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
    """An ONNX graph that is complete in itself.

    Raises ArtifactError where the file is damaged, or its data lies in another file.
    """
    graph = _parse(path)
    if any(external_tensors(graph)):
        raise ArtifactError(f"{path} keeps data in another file, which its graphs never do; export again")
    return graph


def _parse(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError has no public name of its own
        raise ArtifactError(f"{path} is not an ONNX graph ({reason(error)}); export again") from None
