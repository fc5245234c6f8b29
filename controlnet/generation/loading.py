"""From files to a ready ``Generator``."""

from __future__ import annotations

from pathlib import Path

import torch

from annotator.uniformer import SegmentationDetector
from cldm.cldm import ControlNet
from controlnet.generation.controls import Controls
from controlnet.generation.devices import find_device, find_precision
from controlnet.generation.generator import Generator
from controlnet.generation.memory import own_pages
from controlnet.generation.models import ModelFiles
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
    first = None if files.own else next(iter(files.controls.items()), None)
    with own_pages():
        model = load_model(
            files.config, files.weights, place, dtype, control=first and first[1], vae=files.vae,
            loras=files.loras, embeddings=files.embeddings,
        )  # fmt: skip
    if rests:  # the networks stay; what the sampler reads between them comes along
        for name, buffer in model.named_buffers(recurse=False):
            setattr(model, name, buffer.to(target))
    if target.type == "cpu":
        pack_weights(model)

    def load(path: Path) -> ControlNet:
        with own_pages():
            network = load_control(files.config, path, place, dtype, base=files.weights)
        if target.type == "cpu":
            pack_weights(network)
        return network

    own = files.own or ((first[0],) if first else ())
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
    )
