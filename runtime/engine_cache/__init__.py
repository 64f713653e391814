"""Built engines on disk, found by content: `cleave.runtime.engine_cache.cache` is the door."""
