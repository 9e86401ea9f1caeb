"""From a kind's ONNX file to a TensorRT plan, on the machine whose GPU will run it.

`network.py` turns the file into one that TensorRT's parser takes, with TensorRT's own layers (`native.py`) or our
kernels (`plugins.py`) in the place of our operators; `profiles.py` says for which sizes, `write.py` builds. `dynamo.py`
builds from the exported program instead, through torch-tensorrt.
"""
