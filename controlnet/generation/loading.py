"""From files to a ready ``Generator``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from annotator.uniformer import SegmentationDetector
from cldm.assemble import Sources, check_roles
from controlnet.generation.arrival import Arrival
from controlnet.generation.controls import Controls
from controlnet.generation.devices import (
    check_compiler,
    check_graphs,
    find_device,
    find_precision,
    precision_name,
)
from controlnet.generation.generator import Generator
from controlnet.generation.memory import own_pages
from controlnet.generation.models import ModelFiles
from controlnet.generation.world import read_world
from ldm.layouts.recognise import expect, recognise
from ldm.packing import pack_weights

if TYPE_CHECKING:
    from cldm.cldm import ControlLDM, ControlNet

logger = logging.getLogger(__name__)


def load_generator(
    files: ModelFiles,
    device: str = "auto",
    precision: str = "auto",
    save_memory: bool = False,
    compiles: bool = False,
    graphs: bool = False,
    at_once: bool = True,
) -> Generator:
    """Load a model; detectors and further controls load at their first use.

    What can be told from the definition and from the keys of the files is checked before anything is read.

    Args:
        files: of ``find_model``.
        device: ``auto`` for the first GPU if there is one, or torch's name of a device.
        precision: as ``devices.find_precision`` has it.
        save_memory: networks rest in main memory, and attention works in slices.
        compiles: `torch.compile` for UNet, controls and decoder, at the first picture of each size.
        graphs: the same, and their work is recorded as CUDA graphs.
        at_once: False leaves the loading to ``arrival.bring``, and the networks' libraries too, which take
            longer to import than a small model to load.

    Raises:
        ModelError: an unknown device or precision, nothing to compile with, or graphs without a GPU.
        WeightsError: files that do not fit.
    """
    target = find_device(device)
    dtype = find_precision(precision, target)
    if graphs:
        check_graphs(target, save_memory)
    if compiles or graphs:
        check_compiler(target)
    rests = save_memory and target.type != "cpu"
    place = torch.device("cpu") if rests else target
    first = None if files.own else next(iter(files.controls.values()), None)
    resolution = files.resolution  # a fault of the definition is told before one of the files
    check_kinds(files, first)

    def load() -> ControlLDM:
        from cldm.model import load_model

        with own_pages():
            model = load_model(
                files.config, files.weights, place, dtype, control=first, vae=files.vae,
                loras=files.loras, embeddings=files.embeddings,
            )  # fmt: skip
        if rests:  # the networks stay; what the sampler reads between them comes along
            for name, buffer in model.named_buffers(recurse=False):
                setattr(model, name, buffer.to(target))
        prepare(model, target, compiles, graphs)
        return model

    def load_further(path: Path) -> ControlNet:
        from cldm.model import load_control

        with own_pages():
            network = load_control(files.config, path, place, dtype, base=files.weights)
        prepare(network, target, compiles, graphs)
        return network

    own = files.own or tuple(name for name, path in files.controls.items() if path == first)
    controls = Controls(files.controls, load_further, own, files.serves_all)
    generator = Generator(
        Arrival(load),
        {"seg": SegmentationDetector(files.detector_weights, files.detector_config, device=target)},
        files.name,
        resolution,
        save_memory,
        target,
        files.guidance,
        controls,
        files,
        read_world(files.world) if files.world is not None else None,
        precision_name(dtype),
    )
    if at_once:
        generator.arrival.bring()
    return generator


def check_kinds(files: ModelFiles, control: Path | None) -> None:
    """Whether the files are what they are to serve as; nothing of their numbers is read.

    Args:
        control: that is loaded along with the model.

    Raises:
        WeightsError: one is not, or cannot be read.
    """
    sources = Sources(files.weights, control, files.vae, files.loras)
    kind = recognise(files.weights)
    check_roles(sources, kind, recognise(control) if control else kind)
    for path in files.embeddings:
        expect(path, recognise(path), "embedding")


def prepare(network: nn.Module, device: torch.device, compiles: bool, graphs: bool = False) -> None:
    """What makes a loaded network faster, in place: weights packed on a CPU, or `torch.compile`, which lays
    them out by itself, perhaps with CUDA graphs.
    """
    if not compiles and not graphs:
        if device.type == "cpu":
            pack_weights(network)
        return
    from cldm.cldm import ControlledUnetModel, ControlNet
    from ldm.modules.diffusionmodules.model import Decoder

    logger.info("The first picture of each size takes minutes longer: its networks are compiled.")
    for module in network.modules():
        if isinstance(module, ControlledUnetModel | ControlNet | Decoder):
            if graphs:
                replay_graphs(module)
            else:
                module.compile(dynamic=False)


def replay_graphs(module: nn.Module) -> None:
    """Let a module compile itself, in place, and its work be recorded as one CUDA graph for each shape.

    Graphs share their memory, so a run takes that of the results before it; samplers of several steps still
    need those. So callers get copies.
    """
    compiled = torch.compile(module.forward, mode="reduce-overhead", dynamic=False)

    def forward(*inputs: Any, **named: Any) -> Tensor | list[Tensor]:
        found = compiled(*inputs, **named)
        return found.clone() if isinstance(found, Tensor) else [tensor.clone() for tensor in found]

    module.forward = forward
