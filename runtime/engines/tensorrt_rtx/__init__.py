"""The engine kind `tensorrt_rtx`: plans of the pieces are built on any machine and run on an RTX card."""
