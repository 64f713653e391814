"""The attention backends, one a file; `cleave.kvcache.backend` finds them by name."""
