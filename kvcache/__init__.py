"""The attention server: owner of the KV cache. It knows nothing of weights or engines."""
