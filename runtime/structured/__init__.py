"""Structured output: masks of the tokens that a schema, a regex or a grammar allows next."""
