"""Sampling where the logits are: in device memory, with no word from the host between two steps."""
