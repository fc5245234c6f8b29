"""From files to a ready ``Generator``."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import nn

from annotator.uniformer import SegmentationDetector
from cldm.cldm import ControlledUnetModel, ControlNet
from controlnet.generation.controls import Controls
from controlnet.generation.devices import check_compiler, find_device, find_precision
from controlnet.generation.generator import Generator
from controlnet.generation.memory import own_pages
from controlnet.generation.models import ModelFiles
from controlnet.generation.world import read_world
from ldm.modules.diffusionmodules.model import Decoder
from ldm.packing import pack_weights

logger = logging.getLogger(__name__)


def load_generator(
    files: ModelFiles,
    device: str = "auto",
    precision: str = "auto",
    save_memory: bool = False,
    compiles: bool = False,
) -> Generator:
    """Load a model; detectors and further controls load at their first use.

    Args:
        files: of ``find_model``.
        device: ``auto`` for the first GPU if there is one, or torch's name of a device.
        precision: as ``devices.find_precision`` has it.
        save_memory: networks rest in main memory, and attention works in slices.
        compiles: `torch.compile` for UNet, controls and decoder, at the first picture of each size.

    Raises:
        ModelError: an unknown device or precision, or nothing to compile with.
        WeightsError: files that do not fit.
    """
    from cldm.model import load_control, load_model

    target = find_device(device)
    dtype = find_precision(precision, target)
    if compiles:
        check_compiler(target)
    rests = save_memory and target.type != "cpu"
    place = torch.device("cpu") if rests else target
    first = None if files.own else next(iter(files.controls.values()), None)
    with own_pages():
        model = load_model(
            files.config, files.weights, place, dtype, control=first, vae=files.vae,
            loras=files.loras, embeddings=files.embeddings,
        )  # fmt: skip
    if rests:  # the networks stay; what the sampler reads between them comes along
        for name, buffer in model.named_buffers(recurse=False):
            setattr(model, name, buffer.to(target))
    prepare(model, target, compiles)

    def load(path: Path) -> ControlNet:
        with own_pages():
            network = load_control(files.config, path, place, dtype, base=files.weights)
        prepare(network, target, compiles)
        return network

    own = files.own or tuple(name for name, path in files.controls.items() if path == first)
    controls = Controls(files.controls, load, own, files.serves_all)
    return Generator(
        model,
        {"seg": SegmentationDetector(files.detector_weights, files.detector_config, device=target)},
        files.name,
        files.resolution,
        save_memory,
        target,
        files.guidance,
        controls,
        files,
        read_world(files.world) if files.world is not None else None,
    )


def prepare(network: nn.Module, device: torch.device, compiles: bool) -> None:
    """What makes a loaded network faster, in place: weights packed on a CPU, or `torch.compile`, which lays
    them out by itself.
    """
    if not compiles:
        if device.type == "cpu":
            pack_weights(network)
        return
    logger.info("The first picture of each size takes minutes longer: its networks are compiled.")
    for module in network.modules():
        if isinstance(module, ControlledUnetModel | ControlNet | Decoder):
            module.compile(dynamic=False)
