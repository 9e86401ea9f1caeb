"""The canonical ONNX file of a kind as TensorRT's parser takes it: no sequences, no functions, weights where they belong.

`native`: our operators become TensorRT's layers. `plugin`: they stay nodes that name our kernels, and nothing else can
stand in for them: the parser fails where a plugin is not registered. Weights are inputs of the network, shared by the
layers of a kind and by all its profiles; where a layer wants constants, which a convolution does, they are initializers
whose values the caller hands over by address, so that no file and no message holds them.
"""

import tempfile
from pathlib import Path

import onnx
import torch
from onnx import helper, inliner, numpy_helper

from vino_export.functions import DOMAIN, OPSET
from vino_export.tensorrt.native import TENSORRT, native_bodies
from vino_export.trace import write_onnx
from vino_kernels_plugins import PLUGINS
from vino_rt.backends.base import Kind
from vino_rt.errors import EngineError

VARIANTS = ("native", "plugin")
CONVOLUTION_DIMS = 3
"""Of the smallest kernel of a convolution; weights of fewer are those of products and norms."""
ELSEWHERE = "weights"
"""Where the file says that an initializer lies; nothing is read from there."""


def weights_inside(kind: Kind) -> bool:
    """Whether the weights of a kind are constants of its engine: where it has convolutions."""
    with torch.device("meta"):
        return any(tensor.dim() >= CONVOLUTION_DIMS for tensor in kind.build().state_dict().values())
