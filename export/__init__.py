"""Checkpoint to artifact. Only `artifact` and `pieces` are imported while serving; they need no torch."""
