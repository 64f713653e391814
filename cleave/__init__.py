"""Cleave: a compiler-runtime for LLMs. The model is cut at attention; the rest is compiled ahead of time."""

from cleave.errors import CleaveError
from cleave.runtime.async_llm import AsyncLLM
from cleave.runtime.llm import LLM
from cleave.runtime.request import Chunk, Completion, SamplingParams
from cleave.runtime.sampling.logprobs import Logprob
from cleave.runtime.stats import Stats
from cleave.runtime.structured.params import StructuredOutput
from cleave.threads import use_one_thread_pool
from cleave.version import version as _version

__version__ = _version()

__all__ = [
    "LLM",
    "AsyncLLM",
    "Chunk",
    "CleaveError",
    "Completion",
    "Logprob",
    "SamplingParams",
    "Stats",
    "StructuredOutput",
    "__version__",
    "use_one_thread_pool",
]
