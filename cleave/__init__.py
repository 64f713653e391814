"""Cleave: a compiler-runtime for LLMs. The model is cut at attention; the rest is compiled ahead of time."""

from cleave.errors import CleaveError
from cleave.runtime.llm import LLM
from cleave.runtime.request import Chunk, Completion, SamplingParams
from cleave.threads import use_one_thread_pool

__all__ = ["LLM", "Chunk", "CleaveError", "Completion", "SamplingParams", "use_one_thread_pool"]
