"""Tracing: a transformers model becomes the batchful graph, with the attention operator at every cut.

The model is built on torch's meta device, so no weights are needed and almost no memory. None of its
modules is rewritten: attention is replaced through transformers' own AttentionInterface, and rotary
encoding, which belongs to the attention server, is the identity for the time of the trace.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import values
from transformers import AttentionInterface, AutoModelForCausalLM

from cleave.errors import CheckpointError, ExportError, reason
from cleave.export.manifest import EMBEDDING, LM_HEAD
from cleave.export.rope import rope_of
from cleave.export.simplify import simplify
from cleave.plugins.schema import DOMAIN, OPERATOR, VERSION, register_schema
from cleave.plugins.spec import AttentionSpec
from cleave.plugins.torch_operator import cleave_attention

OPSET = 23
"""The first one with RMSNormalization."""

_ATTENTION = "cleave"


@dataclass
class _Recorder:
    """What the attention of each layer turned out to be while the model ran on the meta device."""

    config: Any
    rotated: bool = False
    specs: dict[int, AttentionSpec] = field(default_factory=dict)

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """Stand in for the model's attention. With [tokens, hidden] inputs q is [tokens, head_dim, heads]."""
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        head_dim, heads = query.shape[1:]
        self.specs[layer] = AttentionSpec(
            heads=int(heads),
            kv_heads=int(key.shape[2]),
            head_dim=int(head_dim),
            scale=float(head_dim**-0.5 if scaling is None else scaling),
            rope=rope_of(self.config, int(head_dim)) if self.rotated else None,
            window=None if sliding_window is None else int(sliding_window),
            softcap=None if softcap is None else float(softcap),
        )
        self.rotated = False
        q, k, v = (tensor.transpose(1, 2).flatten(1) for tensor in (query, key, value))
        return cleave_attention(q, k, v, layer), None

    def rotate(self, q: torch.Tensor, k: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, ...]:
        """Stand in for the model's rotary encoding."""
        self.rotated = True
        return q, k


class _NoRotary(torch.nn.Module):
    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


class _Batchful(torch.nn.Module):
    """inputs_embeds [tokens, hidden], logit_rows [rows] int64 -> logits [rows, vocab] float32."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, inputs_embeds: torch.Tensor, logit_rows: torch.Tensor) -> torch.Tensor:
        def select(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return (args[0].index_select(0, logit_rows),)

        hook = self.model.model.norm.register_forward_pre_hook(select)
        try:
            positions = torch.zeros(1, 1, dtype=torch.int64, device=inputs_embeds.device)
            hidden = self.model.model(
                inputs_embeds=inputs_embeds, position_ids=positions, use_cache=False
            ).last_hidden_state
        finally:
            hook.remove()
        logits: torch.Tensor = self.model.lm_head(hidden).to(torch.float32)
        return logits


class MetaModel:
    """A model without weights, ready to be traced."""

    def __init__(self, config: Any, dtype: str, architecture: str) -> None:
        """`config` is a transformers config; `dtype` one of "float32", "float16", "bfloat16".

        Raises CheckpointError where the config makes no model, or not one of `architecture`.
        """
        self.config = config
        self.dtype: torch.dtype = getattr(torch, dtype)
        try:
            with torch.device("meta"), quiet():
                self.model = AutoModelForCausalLM.from_config(config, dtype=self.dtype).eval()
        except Exception as error:  # sizes that do not fit together fail anywhere inside
            raise CheckpointError(f"transformers makes no model of the config: {reason(error)}") from None
        made = type(self.model).__name__
        if made != architecture:
            raise CheckpointError(
                f"config.json names {architecture}, and its model_type {config.model_type} makes {made}"
            )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight by its name in the checkpoint; a tied lm_head is the embedding."""
        return {name: tuple(weight.shape) for name, weight in self.model.named_parameters()}

    def attention_specs(self) -> tuple[AttentionSpec, ...]:
        """The attention spec of every layer, read off one run of the model on the meta device."""
        with self._cut() as recorder, torch.no_grad():
            _Batchful(self.model)(*self._example())
        return self._specs(recorder)

    def trace(self) -> tuple[ir.Model, tuple[AttentionSpec, ...]]:
        """The batchful graph, its weights as inputs under the checkpoint's names, and the specs.

        Raises ExportError where an attention operator was lost on the way.
        """
        with self._cut() as recorder, torch.no_grad(), quiet():
            tokens, rows = torch.export.Dim("tokens"), torch.export.Dim("rows")
            exported = torch.export.export(
                _Batchful(self.model),
                self._example(),
                dynamic_shapes={"inputs_embeds": {0: tokens}, "logit_rows": {0: rows}},
                strict=False,
            )
            register_schema()
            opset = values.Opset(DOMAIN, VERSION)

            def translate(q: Any, k: Any, v: Any, layer: int) -> Any:
                return opset.CleaveAttention(q, k, v, layer=layer)

            program = torch.onnx.export(
                exported,
                dynamo=True,
                optimize=False,  # with weights as inputs, below: see `simplify`
                opset_version=OPSET,
                input_names=["inputs_embeds", "logit_rows"],
                output_names=["logits"],
                custom_translation_table={torch.ops.cleave.CleaveAttention.default: translate},
                verbose=False,
            )
        if program is None:
            raise ExportError("torch.onnx.export returned no program")
        specs = self._specs(recorder)
        graph = simplify(program.model, self._weight_name)
        _check_operators(graph, len(specs))
        return graph, specs

    def _weight_name(self, name: str) -> str:
        """A parameter's name in the trace -> the tensor's name in the checkpoint."""
        name = name.removeprefix("model.")
        if name == LM_HEAD and self.config.tie_word_embeddings:
            return EMBEDDING
        return name

    def _example(self) -> tuple[torch.Tensor, torch.Tensor]:
        # Odd sizes, all different, so that no dimension is taken for another one or specialised.
        embeds = torch.empty(7, self.config.hidden_size, dtype=self.dtype, device="meta")
        return embeds, torch.zeros(3, dtype=torch.int64, device="meta")

    def _specs(self, recorder: _Recorder) -> tuple[AttentionSpec, ...]:
        layers = self.config.num_hidden_layers
        missing = [layer for layer in range(layers) if layer not in recorder.specs]
        if missing:
            raise ExportError(
                f"layers {missing} never called the attention interface; the model cannot be cut"
            )
        return tuple(recorder.specs[layer] for layer in range(layers))

    @contextlib.contextmanager
    def _cut(self) -> Iterator[_Recorder]:
        """The model with attention and rotary encoding taken out; as before on leaving."""
        recorder = _Recorder(self.config)
        module: Any = sys.modules[type(self.model).__module__]
        rotate, rotary = module.apply_rotary_pos_emb, self.model.model.rotary_emb
        previous = self.config._attn_implementation
        AttentionInterface.register(_ATTENTION, recorder.attend)
        self.config._attn_implementation = _ATTENTION
        module.apply_rotary_pos_emb = recorder.rotate
        self.model.model.rotary_emb = _NoRotary()
        try:
            yield recorder
        finally:
            module.apply_rotary_pos_emb = rotate
            self.model.model.rotary_emb = rotary
            self.config._attn_implementation = previous


def _check_operators(graph: ir.Model, layers: int) -> None:
    """Exporters drop unknown operators in silence; count them."""
    found = [
        node.attributes["layer"].as_int()
        for node in graph.graph
        if (node.domain, node.op_type) == (DOMAIN, OPERATOR)
    ]
    lost = sorted(set(range(layers)) - set(found))
    if lost or len(found) != layers:
        raise ExportError(
            f"the traced graph has {len(found)} {OPERATOR} operators for {layers} layers; lost: {lost}"
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' own chatter (missing torchvision, deprecations inside torch) off the terminal."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "transformers")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
