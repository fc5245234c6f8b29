"""Turn M-LSD large from ONNX into this project's weights; how `mlsd_large.safetensors` was made:

    python -m annotator.mlsd.convert_onnx mlsd_512x512_large.onnx annotator/ckpts/mlsd_large.safetensors

The file is in the npm package `jp.keijiro.mlsd` 1.0.0; only this conversion needs the Python package `onnx`.

In ONNX each BatchNorm is part of the convolution before it. Here it is one that changes nothing (scale 1,
mean 0, variance 1 - eps), and the bias goes to the convolution where it has one, else to the BatchNorm: these
are the keys of the released `mlsd_large_512_fp32.pth`. Kernels are stored in float16, but for those that
convolve each channel by itself: they are small, and rounding them would make most of the maps' error. Vectors
stay float32.
"""

from __future__ import annotations

import argparse
import logging
from collections import defaultdict, deque
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from annotator.mlsd.network import MobileV2_MLSD_Large
from ldm.weights import WeightsError, load_into, save_state_dict

logger = logging.getLogger(__name__)

Convolution = tuple[Tensor, Tensor]
"""Kernel ``[O, I, h, w]`` and bias ``[O]``, float32."""


def read_convolutions(path: Path) -> list[Convolution]:
    """The convolutions of an ONNX file, in the order in which they run.

    Raises:
        WeightsError: no such file, no ONNX, a convolution without weights of its own, or no package `onnx`.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise WeightsError(f"{path}: reading ONNX needs the package onnx: pip install onnx") from error
    try:
        graph = onnx.load(path).graph
    except (OSError, DecodeError) as error:
        raise WeightsError(f"{path}: this is no ONNX file that can be read: {error}") from error
    values = {value.name: value for value in graph.initializer}
    convolutions = []
    for node in graph.node:
        if node.op_type == "Conv":
            names = node.input[1:]
            if len(names) != 2 or not all(name in values for name in names):
                raise WeightsError(f"{path}: the convolution {node.name} has no stored kernel and bias")
            kernel, bias = (torch.tensor(onnx.numpy_helper.to_array(values[name])) for name in names)
            convolutions.append((kernel, bias))
    return convolutions


def state_of(convolutions: Iterable[Convolution], source: str | Path) -> dict[str, Tensor]:
    """The state dict of ``MobileV2_MLSD_Large`` with these convolutions.

    Encoder and decoder may be mixed, but convolutions of one shape must come in the network's order.

    Args:
        source: where they come from, for the error.

    Raises:
        WeightsError: a convolution is missing, or one is left over.
    """
    by_shape: dict[torch.Size, deque[Convolution]] = defaultdict(deque)
    for kernel, bias in convolutions:
        by_shape[kernel.shape].append((kernel, bias))
    with torch.device("meta"):
        model = MobileV2_MLSD_Large()
    state, bias = {}, torch.empty(0)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            if not by_shape[layer.weight.shape]:
                raise WeightsError(f"{source}: has no convolution {list(layer.weight.shape)} for {name}")
            kernel, bias = by_shape[layer.weight.shape].popleft()
            state[f"{name}.weight"] = kernel.half() if layer.groups == 1 else kernel
            if layer.bias is not None:
                state[f"{name}.bias"], bias = bias, torch.zeros_like(bias)
        elif isinstance(layer, nn.BatchNorm2d):
            state[f"{name}.weight"] = torch.ones_like(bias)
            state[f"{name}.bias"] = bias
            state[f"{name}.running_mean"] = torch.zeros_like(bias)
            state[f"{name}.running_var"] = torch.full_like(bias, 1 - layer.eps)
            state[f"{name}.num_batches_tracked"] = torch.tensor(0)
    left = [list(shape) for shape, others in by_shape.items() if others]
    if left:
        raise WeightsError(f"{source}: has more convolutions than M-LSD large, of the shapes {left}")
    load_into(model, state, source)  # biases too have the right shapes
    return state


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("onnx", type=Path, help="M-LSD large")
    parser.add_argument("weights", type=Path, help="the .safetensors file to write")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        convolutions = read_convolutions(options.onnx)
        save_state_dict(state_of(convolutions, options.onnx), options.weights)
    except WeightsError as error:
        parser.exit(1, f"{error}\n")
    logger.info("%s: %d convolutions", options.weights, len(convolutions))


if __name__ == "__main__":
    main()
