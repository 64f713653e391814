"""The engine kind `tensorrt`: the whole graph in one plan, with attention as a plugin in it."""
