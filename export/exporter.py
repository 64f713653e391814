"""The export: a checkpoint becomes an artifact, whole or part by part."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from transformers import AutoConfig

from cleave.errors import CheckpointError, ExportError
from cleave.export.artifact import BATCHFUL, WEIGHTS, digest_file, read_manifest
from cleave.export.check import run_check
from cleave.export.checkpoint import Checkpoint
from cleave.export.graphs import save_batchful, save_batchless, weight_names
from cleave.export.manifest import DTYPES, MANIFEST, PARTS, Manifest
from cleave.export.staging import publish, require_space, staging
from cleave.export.tensorfile import TensorLayout, read_header
from cleave.export.tokenizer import export_tokenizer
from cleave.export.trace import MetaModel
from cleave.export.weights import stored_bytes, weights_layout, write_weights
from cleave.plugins.spec import AttentionSpec

EMBEDDING = "model.embed_tokens.weight"
_LIBRARIES = ("torch", "transformers", "onnx", "onnxscript", "onnx-ir")
_GRAPH_BYTES = 64 << 20
"""Room that graphs and tokenizer are taken to need, for the check of the disk."""

Report = Callable[[str, int, int], None]
"""Called with what is being done, the bytes (or steps) done and those in all."""


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

    def __post_init__(self) -> None:
        """Raises ExportError for values that are not allowed."""
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            raise ExportError(
                f"there is no part {', '.join(unknown) or '(none)'}; parts are {', '.join(PARTS)}"
            )
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ExportError(f"dtype {self.dtype} is not known; dtypes are {', '.join(DTYPES)}")
        if self.device not in ("cpu", "cuda"):
            raise ExportError(f"device {self.device} is not known; devices are cpu, cuda")


def export(request: ExportRequest, report: Report = lambda what, done, total: None) -> Manifest:
    """Export a checkpoint, or the parts of it that are asked for, into `request.output_dir`.

    Each part takes its place atomically; what was there before is kept until then, and is kept
    altogether if anything fails. Returns the manifest. Raises CheckpointError or ExportError.
    """
    checkpoint = Checkpoint.find(request.model)
    present = read_manifest(request.output_dir) if (request.output_dir / MANIFEST).is_file() else None
    return _Export(request, checkpoint, present, report).run()


class _Export:
    """One export under way: what it starts from, and the rules for what may come together."""

    def __init__(
        self, request: ExportRequest, checkpoint: Checkpoint, present: Manifest | None, report: Report
    ) -> None:
        self.request = request
        self.checkpoint = checkpoint
        self.report = report
        whole = set(request.parts) == set(PARTS)
        self.kept = None if whole else present
        """What is in output_dir already and stays there; a whole export replaces everything."""
        if request.num_layers is not None and not 1 <= request.num_layers <= checkpoint.layers:
            raise ExportError(
                f"num_layers is {request.num_layers}; {request.model} has {checkpoint.layers} layers"
            )
        kept = self.kept
        self.dtype = request.dtype or (kept.dtype if kept else checkpoint.dtype)
        self.num_layers = request.num_layers or (kept.num_layers if kept else checkpoint.layers)
        if present is not None:
            self._refuse_to_mix(present)
        self.meta = MetaModel(self._config(), self.dtype)

    def run(self) -> Manifest:
        """Stage the parts, check them, publish them."""
        asked = set(self.request.parts)
        with staging(self.request.output_dir) as folder:
            require_space(self.request.output_dir, self._bytes_needed())
            graph = None
            if "batchful" in asked:
                self.report("tracing", 0, 1)
                graph, specs = self.meta.trace()
                self.report("tracing", 1, 1)
            else:
                specs = self.kept.layer_specs if self.kept else self.meta.attention_specs()
            distinct = tuple(dict.fromkeys(specs))
            parts: dict[str, tuple[str, ...]] = dict(self.kept.parts) if self.kept else {}
            if asked & {"batchful", "embed_tokens"}:
                layout = self._write_weights(folder, graph)
                if graph is not None:
                    save_batchful(graph, layout, self.checkpoint, folder)
                    parts["batchful"] = (BATCHFUL, WEIGHTS)
                if "embed_tokens" in asked:
                    parts["embed_tokens"] = (WEIGHTS,)
            for kind in ("prefill", "decode"):
                if f"{kind}_batchless" in asked:
                    parts[f"{kind}_batchless"] = save_batchless(kind, distinct, self.dtype, folder)
            if "tokenizer" in asked:
                parts["tokenizer"] = export_tokenizer(self.checkpoint, folder)
            manifest = self._manifest(folder, parts, specs, distinct)
            (folder / MANIFEST).write_text(manifest.to_json(), "utf-8")
            if self.request.check and not manifest.missing_parts:
                checked = self._check(folder, manifest)
                manifest = replace(manifest, check=checked)
                (folder / MANIFEST).write_text(manifest.to_json(), "utf-8")
            publish(folder, self.request.output_dir)
        self._remove_leftovers(manifest)
        return manifest

    def _refuse_to_mix(self, present: Manifest) -> None:
        where = self.request.output_dir
        if present.fingerprint != self.checkpoint.fingerprint:
            raise ExportError(
                f"{where} holds parts of another checkpoint ({present.source}, {present.architecture}), "
                f"which do not mix with {self.request.model}; choose another --output_dir, or delete it"
            )
        if self.kept is None:
            return
        for name, old, new in (
            ("dtype", self.kept.dtype, self.dtype),
            ("num_layers", self.kept.num_layers, self.num_layers),
        ):
            if old != new:
                raise ExportError(
                    f"{where} was exported with {name} {old}, which does not mix with {new}; "
                    f"leave --{name} out, choose another --output_dir, or export all parts anew"
                )

    def _config(self) -> Any:
        try:
            config = AutoConfig.from_pretrained(self.checkpoint.folder, local_files_only=True)
        except (ValueError, OSError, KeyError, TypeError) as error:
            raise CheckpointError(f"transformers cannot read {self.checkpoint.folder}: {error}") from None
        config.num_hidden_layers = self.num_layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: self.num_layers]
        return config

    def _bytes_needed(self) -> int:
        needed = _GRAPH_BYTES
        if {"batchful", "embed_tokens"} & set(self.request.parts):
            needed += stored_bytes(self.checkpoint, self.checkpoint.tensors, self.dtype)
        return needed

    def _write_weights(self, folder: Path, graph: ir.Model | None) -> TensorLayout:
        """Write weights.safetensors anew: what this export brings and what was there before.

        The header keeps room for the embedding, so tensors stay where the graph looks for them.
        """
        kept = self.kept.parts if self.kept else {}
        names: list[str] = []
        if graph is not None:
            names = weight_names(graph)
        elif "batchful" in kept:
            names = [name for name in read_header(self.request.output_dir / WEIGHTS) if name != EMBEDDING]
            if self.meta.config.tie_word_embeddings:
                names.append(EMBEDDING)
        if EMBEDDING not in names and ("embed_tokens" in kept or "embed_tokens" in self.request.parts):
            names.append(EMBEDDING)
        layout = weights_layout(self.checkpoint, names, self.dtype, reserve=[EMBEDDING])
        total, done = sum(layout.sizes.values()), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self.report("writing weights", done, total)

        write_weights(self.checkpoint, layout, self.dtype, folder / WEIGHTS, advance)
        return layout

    def _manifest(
        self,
        folder: Path,
        parts: dict[str, tuple[str, ...]],
        specs: tuple[AttentionSpec, ...],
        distinct: tuple[AttentionSpec, ...],
    ) -> Manifest:
        files = dict(self.kept.files) if self.kept else {}
        for path in sorted(folder.iterdir()):
            files[path.name] = digest_file(
                path, progress=lambda name, done, total: self.report("digesting", done, total)
            )
        used = {name for names in parts.values() for name in names}
        return Manifest(
            architecture=self.checkpoint.architecture,
            source=self.request.model,
            fingerprint=self.checkpoint.fingerprint,
            dtype=self.dtype,
            num_layers=self.num_layers,
            config=self.checkpoint.config,
            specs=distinct,
            spec_of_layer=tuple(distinct.index(spec) for spec in specs),
            embedding=EMBEDDING,
            parts={part: parts[part] for part in PARTS if part in parts},
            files={name: files[name] for name in sorted(used)},
            libraries={name: importlib.metadata.version(name) for name in ("cleave", *_LIBRARIES)},
        )

    def _check(self, folder: Path, manifest: Manifest) -> dict[str, Any]:
        """Compare the artifact with transformers, as it will be once it is published."""
        for name in manifest.files:
            if not (folder / name).exists():
                os.link(self.request.output_dir / name, folder / name)
        self.report("comparing with transformers", 0, 1)
        result = run_check(self.checkpoint, folder, manifest, device=self.request.device)
        self.report("comparing with transformers", 1, 1)
        return result

    def _remove_leftovers(self, manifest: Manifest) -> None:
        """Files of an earlier export that nothing refers to any more."""
        if self.kept is None:
            for pattern in ("*_batchless_*.onnx",):
                for path in self.request.output_dir.glob(pattern):
                    if path.name not in manifest.files:
                        path.unlink()
