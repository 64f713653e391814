"""The engine kind `inductor`: the pieces compiled by torch's Inductor, decode steps as CUDA graphs.

In reading order: `operators` and `program` (an ONNX piece becomes a torch graph), `join` (matrices that read
the same input become one), `small` (own kernels for few rows), `compiler` (three compiled pieces for
all layers), `weights`, `inputs`, `graphs` (replay), and the `engine` that runs a step.
"""
