"""Build TensorRT plans from a kind's ONNX file, on the machine whose GPU will run them.

`network.py` converts the file to one that TensorRT's parser accepts, replacing our operators by TensorRT's own layers
(`native.py`) or our kernels (`plugins.py`). `profiles.py` derives the sizes, `write.py` builds. `dynamo.py` builds from
the exported program instead, through torch-tensorrt; `provider.py` prepares files for ONNX Runtime's TensorRT provider.
"""
