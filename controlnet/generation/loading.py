"""From files to a ready ``Generator``."""

from __future__ import annotations

from pathlib import Path

import torch

from annotator.uniformer import SegmentationDetector
from cldm.cldm import ControlNet
from controlnet.generation.controls import Controls
from controlnet.generation.devices import find_device, find_precision
from controlnet.generation.generator import Generator
from controlnet.generation.models import ModelFiles
from controlnet.generation.world import read_world
from ldm.packing import pack_weights


def load_generator(
    files: ModelFiles, device: str = "auto", precision: str = "auto", save_memory: bool = False
) -> Generator:
    """Load a model; detectors and further controls load at their first use.

    Args:
        files: of ``find_model``.
        device: ``auto`` for the first GPU if there is one, or torch's name of a device.
        precision: as ``devices.find_precision`` has it.
        save_memory: networks rest in main memory, and attention works in slices.

    Raises:
        ModelError: an unknown device or precision.
        WeightsError: files that do not fit.
    """
    from cldm.model import load_control, load_model

    target = find_device(device)
    dtype = find_precision(precision, target)
    rests = save_memory and target.type != "cpu"
    place = torch.device("cpu") if rests else target
    first = None if files.own else next(iter(files.controls.values()), None)
    model = load_model(
        files.config, files.weights, place, dtype, control=first, vae=files.vae,
        loras=files.loras, embeddings=files.embeddings,
    )  # fmt: skip
    if rests:  # the networks stay; what the sampler reads between them comes along
        for name, buffer in model.named_buffers(recurse=False):
            setattr(model, name, buffer.to(target))
    if target.type == "cpu":
        pack_weights(model)

    def load(path: Path) -> ControlNet:
        network = load_control(files.config, path, place, dtype, base=files.weights)
        if target.type == "cpu":
            pack_weights(network)
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
