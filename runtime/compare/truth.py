"""What transformers computes at every place, in float32 with its eager attention."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from cleave.errors import CompareError, MissingPackage
from cleave.export.artifact import Artifact
from cleave.export.dequantized import use_dequantized
from cleave.export.shape import ModelShape
from cleave.runtime.compare.trace import Place, Trace


def trace_transformers(checkpoint: Path, artifact: Artifact, tokens: Sequence[int]) -> Trace:
    """What crosses every cut while transformers reads the tokens.

    The weights are rounded to the artifact's dtype and then widened, as a float32 engine does with the
    artifact's; where the artifact is quantised, they are what its integers stand for. Raises
    CompareError for a checkpoint that is not one or is of another shape, or that does not fit the memory;
    MissingPackage where transformers is not installed.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        package = error.name or "transformers"
        raise MissingPackage(package, "export", "`cleave compare --checkpoint`") from None
    manifest = artifact.manifest
    if not (checkpoint / "config.json").is_file():
        raise CompareError(f"{checkpoint} is not a checkpoint: it has no config.json")
    config = transformers.AutoConfig.from_pretrained(checkpoint, local_files_only=True)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the artifact has its matrices; they are put in their places below
    _check_shape(config, artifact, checkpoint)
    _check_memory(artifact)
    config.num_hidden_layers = manifest.num_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: manifest.num_layers]
    with _quiet(transformers.utils.logging):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            checkpoint,
            config=config,
            dtype=getattr(torch, manifest.dtype),
            attn_implementation="eager",
            local_files_only=True,
        )
    model = model.float().eval()
    use_dequantized(model, artifact)
    watcher = _Watcher(Trace(manifest.num_layers, len(tokens)))
    with watcher.watching(model), torch.no_grad():
        logits = model(torch.tensor([list(tokens)]), use_cache=False).logits[0]
    watcher.trace.put(Place(manifest.num_layers, "logits"), 0, logits)
    return watcher.trace


def _check_shape(config: Any, artifact: Artifact, checkpoint: Path) -> None:
    manifest = artifact.manifest
    given = (config.hidden_size, config.vocab_size)
    if given != (manifest.hidden_size, manifest.vocab_size) or config.num_hidden_layers < manifest.num_layers:
        raise CompareError(
            f"{checkpoint} is another model: hidden size {given[0]}, vocabulary {given[1]}, "
            f"{config.num_hidden_layers} layers; the artifact has {manifest.hidden_size}, "
            f"{manifest.vocab_size} and {manifest.num_layers}. Give the checkpoint that it was exported "
            f"from ({manifest.source})"
        )


def _check_memory(artifact: Artifact) -> None:
    needed = 4 * ModelShape.of(artifact.folder).parameters
    free = psutil.virtual_memory().available
    if needed > free:
        raise CompareError(
            f"transformers in float32 needs {needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB "
            "are free; free some, or compare an export of fewer layers (cleave export --num_layers)"
        )


@contextlib.contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """No progress bar on the terminal, where the table goes, and no report of what is packed as missing."""
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


class _Watcher:
    """Hooks on the layers; q, k, v and the attention output are seen where the model hands them over."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._before_rope: tuple[Any, Any] | None = None

    @contextlib.contextmanager
    def watching(self, model: Any) -> Iterator[None]:
        """While this lasts the model shows what it computes. Its module's functions are put back after."""
        module: Any = sys.modules[type(model).__module__]
        rotate, attend = module.apply_rotary_pos_emb, module.eager_attention_forward

        def rotating(q: Any, k: Any, *rest: Any, **options: Any) -> Any:
            self._before_rope = (q, k)
            return rotate(q, k, *rest, **options)

        def attending(layer: Any, q: Any, k: Any, v: Any, *rest: Any, **options: Any) -> Any:
            result = attend(layer, q, k, v, *rest, **options)
            q, k = self._before_rope or (q, k)
            self._before_rope = None
            for name, heads in (("q", q), ("k", k), ("v", v), ("attention", result[0].transpose(1, 2))):
                self._put(layer.layer_idx, name, heads[0].transpose(0, 1).flatten(1))
            return result

        hooks = [
            layer.register_forward_hook(self._after(index)) for index, layer in enumerate(model.model.layers)
        ]
        hooks.append(model.model.layers[0].register_forward_pre_hook(self._before_first, with_kwargs=True))
        module.apply_rotary_pos_emb, module.eager_attention_forward = rotating, attending
        try:
            yield
        finally:
            module.apply_rotary_pos_emb, module.eager_attention_forward = rotate, attend
            for hook in hooks:
                hook.remove()

    def _before_first(self, _: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden = positional[0] if positional else named["hidden_states"]
        self._put(-1, "residual", hidden[0])

    def _after(self, layer: int) -> Any:
        def hook(_: Any, __: Any, result: Any) -> None:
            hidden = result[0] if isinstance(result, tuple) else result
            self._put(layer, "residual", hidden[0])

        return hook

    def _put(self, layer: int, tensor: str, rows: Any) -> None:
        self.trace.put(Place(layer, tensor), 0, rows)
