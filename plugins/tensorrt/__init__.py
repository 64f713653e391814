"""The operator as a TensorRT plugin: it hands its tensors to an attention server, and does nothing else.

The order to read in: fields, host, operator, plugin, creator. Nothing here imports TensorRT: its module is
passed in, since `tensorrt` of several versions and `tensorrt_rtx_bindings` have the same interfaces.
"""
