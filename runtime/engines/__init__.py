"""The engine kinds, one a file; `cleave.runtime.engines.engine` finds them by name."""
