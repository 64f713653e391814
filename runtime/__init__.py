"""Artifact to tokens: engines, scheduler, sampler, detokenizer, and the LLM that joins them.

The way of one step, in reading order: `scheduler` (which tokens run), `step` (what that is), `stepper`
(the transaction), `engines/` (the arithmetic), `sampler` (the next token), `detokenizer` (the text).
"""
