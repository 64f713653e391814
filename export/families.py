"""Which architectures can be cut, and why the others cannot."""

from __future__ import annotations

from cleave.errors import CheckpointError

SUPPORTED = {
    "LlamaForCausalLM": "Llama",
    "MistralForCausalLM": "Mistral",
    "Qwen2ForCausalLM": "Qwen2",
    "Qwen3ForCausalLM": "Qwen3",
}
"""Architecture in config.json -> family."""

_MIXTURE = ("Mixtral", "Moe", "MoE", "Deepseek", "GptOss", "Dbrx", "Jamba", "Llama4", "MiniMax", "Phimoe")
_ENCODER_DECODER = (
    "T5",
    "Bart",
    "Marian",
    "Pegasus",
    "Whisper",
    "EncoderDecoder",
    "M2M100",
    "Blenderbot",
    "UMT5",
)
_STATE_SPACE = ("Mamba", "Rwkv", "RecurrentGemma", "Falcon_H1", "FalconH1", "Bamba", "Zamba", "xLSTM", "Lfm2")


def check_architecture(architectures: object, *, where: str) -> str:
    """The architecture, if Cleave can cut it. `architectures` is that entry of config.json.

    Raises CheckpointError, which says what kind of model it is and which can be cut.
    """
    names = architectures if isinstance(architectures, list) else []
    for name in names:
        if name in SUPPORTED:
            return str(name)
    given = ", ".join(map(str, names)) or "no architecture"
    supported = ", ".join(SUPPORTED)
    raise CheckpointError(f"{where} is {given}{_reason(given)}; Cleave cuts {supported}")


def _reason(name: str) -> str:
    if any(part in name for part in _STATE_SPACE):
        return ", a state-space or recurrent model: its history is not a KV cache"
    if any(part in name for part in _ENCODER_DECODER) or "ConditionalGeneration" in name:
        return ", an encoder-decoder or multimodal model: it has more than one kind of attention to cut"
    if any(part in name for part in _MIXTURE):
        return ", a mixture of experts: which weights run depends on the tokens, and that does not trace"
    return ""
