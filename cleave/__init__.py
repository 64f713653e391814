"""Cleave: a compiler-runtime for LLMs, cut at attention."""
