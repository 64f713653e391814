"""The gate of a quantised export: measured before it is published, refused where it lost too much."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from cleave.errors import ExportError
from cleave.export.artifact import TOKENIZER, WEIGHTS, Artifact
from cleave.export.calibration import Windows, calibration_text, calibration_windows
from cleave.export.checkpoint import Checkpoint
from cleave.export.graphs import weight_names
from cleave.export.layerwise import Layerwise
from cleave.export.manifest import EMBEDDING, Manifest
from cleave.export.quality import MAX_KL, Quality, compare
from cleave.export.quantization import Quantization
from cleave.export.request import ExportRequest
from cleave.export.tokenizer import export_tokenizer

_Array = npt.NDArray[Any]


class QualityGate:
    """Runs a quantised export, and the same model in float32 where there is one, over a text.

    Both are read layer by layer, with the weights of one piece in memory; while logits are compared the last
    pieces of both are. So a model is measured that does not fit in float32.
    """

    def __init__(self, request: ExportRequest, checkpoint: Checkpoint, *, context: int, vocab: int) -> None:
        """Read the text; `context` and `vocab` are those of the model.

        Raises ExportError for a text that cannot be used, and for a limit that nothing can be held to.
        """
        if checkpoint.ready is not None and request.max_kl is not None:
            raise ExportError(
                f"max_kl needs a float32 model to compare with, and {request.model} is quantised already: "
                "only its perplexity is measured; leave --max_kl out"
            )
        self._request = request
        self._checkpoint = checkpoint
        self._reference: onnx.ModelProto | None = None
        text = calibration_text(request.calibration)
        with tempfile.TemporaryDirectory() as folder:
            export_tokenizer(checkpoint, Path(folder))
            file = Path(folder) / TOKENIZER
            self._windows: Windows = calibration_windows(text, file, context=context, vocab=vocab)

    @classmethod
    def of(
        cls, request: ExportRequest, checkpoint: Checkpoint, config: Any, *, is_quantized: bool
    ) -> QualityGate | None:
        """The gate of an export; None where nothing is measured: its graph is not quantised, or kept.

        `config` is that of transformers. Raises ExportError for options that mean something only to a gate.
        """
        is_measured = is_quantized and "batchful" in request.parts
        if request.quality_options and not is_measured:
            raise ExportError(
                f"{request.quality_options[0]} is for exports of a quantised batchful part; give "
                "--quantize int8 or int4, or leave it out"
            )
        if not is_measured or not request.quality:
            return None
        return cls(request, checkpoint, context=config.max_position_embeddings, vocab=config.vocab_size)

    def keep_reference(self, graph: ir.Model) -> None:
        """Remember a traced graph, its weights as inputs, as it is before it is quantised.

        A checkpoint that is quantised already has no float32 form, and so no reference.
        """
        if self._checkpoint.ready is None:
            self._reference = _with_external_weights(graph)

    def measure(
        self, folder: Path, manifest: Manifest, report: Callable[[str, int, int], None]
    ) -> dict[str, Any]:
        """What the manifest says of the quality of the artifact staged in `folder`.

        Raises ExportError where it is too far from float32, unless the request forces it.
        """
        artifact = Artifact(folder, manifest)
        layers, blocks = manifest.num_layers, len(self._windows)
        total, done = layers * (1 if self._reference is None else 2) + blocks, 0

        def advance() -> None:
            nonlocal done
            done += 1
            report("measuring quality", done, total)

        report("measuring quality", 0, total)
        tokens = np.concatenate(self._windows)
        scale = np.float32(manifest.embedding_scale)
        lengths = [len(window) for window in self._windows]
        specs = manifest.layer_specs

        def read(graph: onnx.ModelProto, weight: Callable[[str], _Array], rows: _Array) -> Layerwise:
            return Layerwise(graph, weight, specs, rows.astype(np.float32) * scale, lengths, advance)

        model = read(artifact.batchful_graph(), artifact.weight, self._embedded(artifact, tokens))
        reference = None
        if self._reference is not None:
            rows = self._plain(EMBEDDING)[tokens]
            reference = read(self._reference, self._plain, rows)
        text = "bundled" if self._request.calibration is None else str(self._request.calibration)
        quality = compare(model, reference, self._windows, text=text, advance=advance)
        return self._judged(quality, manifest.quantization)

    def _judged(self, quality: Quality, quantization: Quantization | None) -> dict[str, Any]:
        if quantization is not None and not self._request.force:
            quality.check(self._max_kl, quantization)
        judged = quality.to_dict()
        if quality.kl is not None:
            judged |= {"max_kl": self._max_kl, "forced": self._request.force}
        return judged

    @property
    def _max_kl(self) -> float:
        return MAX_KL if self._request.max_kl is None else self._request.max_kl

    def _embedded(self, artifact: Artifact, tokens: npt.NDArray[np.int64]) -> _Array:
        """The embedding as the artifact has it; where only batchful is exported, the checkpoint's."""
        if EMBEDDING in artifact.tensors:
            return artifact.embedding_rows()(tokens)
        rows: _Array = self._plain(EMBEDDING)[tokens]
        return rows

    def _plain(self, name: str) -> _Array:
        return self._checkpoint.tensor(name).mapped()


def _with_external_weights(graph: ir.Model) -> onnx.ModelProto:
    """The graph with its weights as initializers without data, as the cutter expects them."""
    proto: onnx.ModelProto = ir.to_proto(graph)
    weights = set(weight_names(graph))
    for value in [value for value in proto.graph.input if value.name in weights]:
        proto.graph.input.remove(value)
        kind = value.type.tensor_type
        tensor = proto.graph.initializer.add(
            name=value.name, data_type=kind.elem_type, dims=[size.dim_value for size in kind.shape.dim]
        )
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=WEIGHTS)
    return proto
