"""Cleave beside llama.cpp on GGUF from the same weights, each prompt a sequence of one context.

Its AMX kernels crash on quantised weights on some processors (ggml-org/llama.cpp#20824). A build without
them is used where `LLAMA_CPP_LIB_PATH` names its folder, or with a whole wheel of one:

    CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON \
        -DGGML_AVX512_BF16=ON" pip install --no-binary llama-cpp-python llama-cpp-python==0.3.36
"""

from __future__ import annotations

import argparse
import ctypes
from typing import Any

from contenders import Prompts, Weights
from needs import require
from side_by_side import main, parser
from workshop import Workshop

PIN = "llama-cpp-python==0.3.36 gguf==0.19.0"
WEIGHTS = {
    "F32": Weights("F32", 4, "float32"),
    "F16": Weights("F16", 2, "float32"),
    "Q8_0": Weights("Q8_0", 34 / 32, "int8"),
    "Q4_0": Weights("Q4_0", 18 / 32, "int8"),
}
NO_AMX = (
    "llama.cpp was built without AMX, since its AMX kernels crash on quantised weights on some processors "
    "(ggml-org/llama.cpp#20824)."
)
_MICRO_BATCH = 512


class LlamaCpp:
    """See `contenders.Contender`. Through llama.cpp's own C interface, which batches sequences."""

    program = "llama.cpp"

    def __init__(self, weights: str, files: Workshop, arguments: argparse.Namespace, batch: int) -> None:
        import llama_cpp
        from gguf_checkpoint import write_gguf

        self._api: Any = llama_cpp
        self.weights = WEIGHTS[weights]
        has_amx = b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info()
        self.note = "" if has_amx else NO_AMX
        self._silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silence, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        file = files.kept(f"{weights}.gguf", lambda path: write_gguf(files.checkpoint(), path, weights))
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(file).encode(), options)
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._length = arguments.prompt + arguments.output + 1
        self._threads = arguments.threads
        self._contexts: dict[int, Any] = {}
        self._batch = llama_cpp.llama_batch_init(batch * arguments.prompt, 0, 1)

    def generate(self, prompts: Prompts, tokens: int) -> Prompts:
        """See `Contender`."""
        api = self._api
        context = self._context(len(prompts), len(prompts[0]))
        api.llama_memory_clear(api.llama_get_memory(context), True)
        rows = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        answers: Prompts = [[] for _ in prompts]
        for step in range(tokens):
            self._decode(context, rows)
            wanted = [index for index, row in enumerate(rows) if row[3]]
            for answer, index in zip(answers, wanted, strict=True):
                answer.append(self._likeliest(context, index))
            rows = [
                (answer[-1], len(prompts[sequence]) + step, sequence, True)
                for sequence, answer in enumerate(answers)
            ]
        return answers

    def close(self) -> None:
        """See `Contender`."""
        for context in self._contexts.values():
            self._api.llama_free(context)
        self._api.llama_batch_free(self._batch)
        self._api.llama_model_free(self._model)

    def _context(self, sequences: int, prompt: int) -> Any:
        if sequences not in self._contexts:
            options = self._api.llama_context_default_params()
            options.n_seq_max = sequences
            options.n_ctx = sequences * -(-self._length // 256) * 256  # rounded up as llama.cpp does
            options.n_batch = sequences * prompt
            options.n_ubatch = _MICRO_BATCH
            options.n_threads = options.n_threads_batch = self._threads
            self._contexts[sequences] = self._api.llama_init_from_model(self._model, options)
        return self._contexts[sequences]

    def _decode(self, context: Any, rows: list[tuple[int, int, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for index, (token, position, sequence, wants_logits) in enumerate(rows):
            batch.token[index], batch.pos[index], batch.n_seq_id[index] = token, position, 1
            batch.seq_id[index][0], batch.logits[index] = sequence, wants_logits
        if self._api.llama_decode(context, batch) != 0:
            raise RuntimeError(f"llama.cpp could not run a batch of {len(rows)} tokens")

    def _likeliest(self, context: Any, index: int) -> int:
        import numpy as np

        logits = self._api.llama_get_logits_ith(context, index)
        return int(np.ctypeslib.as_array(logits, shape=(self._vocab,)).argmax())


if __name__ == "__main__":
    given = parser(__doc__, peer="Q8_0,Q4_0", ours="int8,int4").parse_args()
    require("llama-cpp-python", f"'{PIN.split()[0]}' '{PIN.split()[1]}'")
    require("gguf", f"'{PIN.split()[1]}'")
    main("llama_cpp", LlamaCpp, tuple(WEIGHTS), given)
