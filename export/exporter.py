"""The export: a checkpoint becomes an artifact, whole or part by part."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from cleave.errors import ArtifactError, ExportError, reason
from cleave.export.artifact import BATCHFUL, WEIGHTS, digest_file, read_manifest
from cleave.export.check import run_check
from cleave.export.checkpoint import Checkpoint
from cleave.export.config import load_config
from cleave.export.graphs import save_batchful, save_batchless, weight_names
from cleave.export.input_order import reorder_inputs
from cleave.export.manifest import EMBEDDING, LM_HEAD, MANIFEST, PARTS, SIZES, Manifest
from cleave.export.quality_gate import QualityGate
from cleave.export.quantization_choice import (
    COMPUTES_IN,
    check_quantization,
    choose_quantization,
    is_wanted,
)
from cleave.export.quantized_graph import quantize_graph
from cleave.export.request import ExportRequest, check_layers
from cleave.export.staging import publish, require_space, staging
from cleave.export.tensorfile import TensorFileError, TensorLayout, read_header
from cleave.export.tokenizer import export_tokenizer
from cleave.export.trace import MetaModel
from cleave.export.weights import StoredWeights, check_tensors
from cleave.plugins.spec import AttentionSpec

__all__ = ["ExportRequest", "Report", "export"]

_log = logging.getLogger("cleave")
_LIBRARIES = ("torch", "transformers", "onnx", "onnxscript", "onnx-ir")
_GRAPH_BYTES = 64 << 20
"""Room that graphs and tokenizer are taken to need at most, for the check of the disk."""

Report = Callable[[str, int, int], None]
"""Called with what is being done, the bytes (or steps) done and those in all."""


def export(
    request: ExportRequest,
    report: Report = lambda what, done, total: None,
    checkpoint: Checkpoint | None = None,
) -> Manifest:
    """Export a checkpoint, or the parts of it that are asked for, into `request.output_dir`.

    Each part takes its place atomically; what was there before is kept until then, and is kept
    altogether if anything fails. `checkpoint` is the one that `request.model` names, where it is open
    already. Returns the manifest. Raises CheckpointError, ExportError, or ArtifactError where a part is
    to be added to an artifact whose manifest cannot be read.
    """
    try:
        checkpoint = checkpoint or Checkpoint.find(request.model)
        if (request.output_dir / "config.json").is_file():
            raise ExportError(f"output_dir {request.output_dir} is a checkpoint; give a folder of its own")
        with staging(request.output_dir) as folder:
            # Read under the lock: an export that was still running may just have added its part.
            return _Export(request, checkpoint, _present(request), report).run(folder)
    except OSError as error:
        raise ExportError(f"the export was undone: {error}") from None


def _present(request: ExportRequest) -> Manifest | None:
    """The manifest that is in output_dir. One that cannot be read is no hindrance to a whole export."""
    if not (request.output_dir / MANIFEST).is_file():
        return None
    try:
        return read_manifest(request.output_dir)
    except ArtifactError:
        if request.whole:
            return None
        raise


class _Export:
    """One export under way: what it starts from, and the rules for what may come together."""

    def __init__(
        self, request: ExportRequest, checkpoint: Checkpoint, present: Manifest | None, report: Report
    ) -> None:
        self.request = request
        self.checkpoint = checkpoint
        self.report = report
        self.present = present
        self.kept = None if request.whole else present
        """What is in output_dir already and stays there; a whole export replaces everything."""
        check_layers(request.num_layers, model=request.model, layers=checkpoint.layers)
        kept = self.kept
        self.quantization = choose_quantization(request, checkpoint, kept)
        plain = COMPUTES_IN if self.quantization else checkpoint.dtype
        self.dtype = request.dtype or (kept.dtype if kept else plain)
        self.num_layers = request.num_layers or (kept.num_layers if kept else checkpoint.layers)
        if present is not None:
            self._refuse_to_mix(present)
        self.meta = MetaModel(self._config(), self.dtype, checkpoint.architecture)
        is_quantized = self.quantization is not None
        self.gate = QualityGate.of(request, checkpoint, self.meta.config, is_quantized=is_quantized)
        for note in checkpoint.ready.notes if checkpoint.ready else ():
            _log.warning("%s", note)

    def run(self, folder: Path) -> Manifest:
        """Stage the parts in `folder`, check them, publish them."""
        asked = set(self.request.parts)
        require_space(self.request.output_dir, _GRAPH_BYTES)
        shapes = self._shapes()
        check_tensors(self.checkpoint, shapes)
        if self.quantization is not None:
            tied = bool(self.meta.config.tie_word_embeddings)
            check_quantization(
                self.quantization, shapes, is_tied=tied, ready=self.checkpoint.ready is not None
            )
        graph = None
        if "batchful" in asked:
            self.report("tracing", 0, 1)
            graph, specs = self.meta.trace()
            self.report("tracing", 1, 1)
            if self.gate is not None:
                self.gate.keep_reference(graph)
            if self.checkpoint.ready is not None:
                reorder_inputs(graph, self.checkpoint.ready.orders)
            if self.quantization is not None:
                self.quantization = quantize_graph(graph, self._is_quantized, self.quantization)
        else:
            specs = self.kept.layer_specs if self.kept else self.meta.attention_specs()
        distinct = tuple(dict.fromkeys(specs))
        parts: dict[str, tuple[str, ...]] = dict(self.kept.parts) if self.kept else {}
        if asked & {"batchful", "embed_tokens"}:
            layout = self._write_weights(folder, graph)
            if graph is not None:
                save_batchful(graph, layout, folder)
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
        if self.gate is not None:
            manifest = replace(manifest, quality=self.gate.measure(folder, manifest, self.report))
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
        config = load_config(self.checkpoint.folder, self.num_layers)
        # As transformers does: a checkpoint that has both tensors, and not the same values, ties nothing.
        ready = self.checkpoint.ready
        if config.tie_word_embeddings and LM_HEAD in self.checkpoint.tensors:
            config.tie_word_embeddings = self.checkpoint.same_values(LM_HEAD, EMBEDDING)
        elif ready is not None and LM_HEAD in (*ready.shapes, *ready.dequantized_shapes):
            config.tie_word_embeddings = False
        return config

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors that this export takes from the checkpoint, as the config wants them."""
        batchful, embedding = ("batchful" in self.request.parts, "embed_tokens" in self.request.parts)
        shapes = self.meta.shapes() if batchful or embedding else {}
        embedding = embedding or self.meta.config.tie_word_embeddings
        return {
            name: shape for name, shape in shapes.items() if (embedding if name == EMBEDDING else batchful)
        }

    def _is_quantized(self, name: str) -> bool:
        """Whether a weight of the graph is one that is to be quantised, or is so already."""
        ready = self.checkpoint.ready
        if ready is not None and name not in (EMBEDDING, LM_HEAD):
            return name in ready.shapes
        return self.quantization is not None and is_wanted(self.quantization, name)

    def _write_weights(self, folder: Path, graph: ir.Model | None) -> TensorLayout:
        """Write weights.safetensors anew: what this export brings and what was there before.

        The header keeps room for the embedding, so tensors stay where the graph looks for them.
        """
        kept = self.kept.parts if self.kept else {}
        names: list[str] = []
        if graph is not None:
            names = weight_names(graph)
        elif "batchful" in kept:
            try:
                names = list(read_header(self.request.output_dir / WEIGHTS))
            except (OSError, TensorFileError) as error:
                raise ExportError(f"{reason(error)}; export batchful again") from None
        weights = StoredWeights(self.checkpoint, self.dtype, self.quantization)
        layout = weights.layout(names, embedding="embed_tokens" in {*kept, *self.request.parts})
        require_space(self.request.output_dir, layout.total + _GRAPH_BYTES)
        total, done = sum(layout.sizes.values()), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self.report("writing weights", done, total)

        weights.write(layout, folder / WEIGHTS, advance)
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
            # config.json may leave out what is the default of its architecture.
            config=self.checkpoint.config | {name: getattr(self.meta.config, name) for name in SIZES},
            specs=distinct,
            spec_of_layer=tuple(distinct.index(spec) for spec in specs),
            embedding=EMBEDDING,
            parts={part: parts[part] for part in PARTS if part in parts},
            files={name: files[name] for name in sorted(used) if name in files},
            quantization=self.quantization,
            quality=self.kept.quality if self.kept else {},
            libraries={name: importlib.metadata.version(name) for name in ("cleave", *_LIBRARIES)},
        )

    def _check(self, folder: Path, manifest: Manifest) -> dict[str, Any]:
        """Compare the artifact with transformers, as it will be once it is published."""
        for name in manifest.files:
            kept = self.request.output_dir / name
            if not (folder / name).exists():
                if not kept.is_file():
                    raise ExportError(
                        f"{kept} is missing, so there is nothing to check; export all parts anew"
                    )
                try:
                    os.link(kept, folder / name)
                except OSError:  # some filesystems have no links
                    shutil.copyfile(kept, folder / name)
        self.report("comparing with transformers", 0, 1)
        result = run_check(self.checkpoint, folder, manifest, device=self.request.device)
        self.report("comparing with transformers", 1, 1)
        return result

    def _remove_leftovers(self, manifest: Manifest) -> None:
        """Files of an earlier export that nothing refers to any more."""
        for name in self.present.files if self.present else ():
            if name not in manifest.files:
                (self.request.output_dir / name).unlink(missing_ok=True)
