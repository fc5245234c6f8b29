"""From a name on a command line to a ready ``Generator``: which files a model is made of, and how to get
them.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from annotator.uniformer import SegmentationDetector
from cldm.model import load_config
from controlnet.files import CONFIGS, MODELS, find_file, home
from controlnet.generation.generator import Generator
from ldm.packing import pack_weights
from ldm.weights import WeightsError

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LATENT_FACTOR = 8  # pixels per latent pixel, of SD's autoencoder and of ours


class ModelError(ValueError):
    """A model that is not known, or whose files are not there; the text says how to get them."""


@dataclass(frozen=True)
class ModelFiles:
    """The four files of a model. ``detector_config`` None is the original's UPerNet with UniFormer-S.

    ``guidance`` is the scale that front ends offer first; 9 is the original's.
    """

    name: str
    config: Path
    weights: Path
    detector_weights: Path
    detector_config: Path | None
    how_to_get: str
    guidance: float = 9.0

    def missing(self) -> list[Path]:
        """The files that are not there."""
        files = [self.config, self.weights, self.detector_weights, self.detector_config]
        return [file for file in files if file is not None and not file.is_file()]

    @property
    def resolution(self) -> int:
        """The short side that the model was trained at, in pixels: the YAML's ``image_size`` counts latent
        pixels.
        """
        size = (load_config(self.config).model.get("params") or {}).get("image_size")
        if not isinstance(size, int):
            raise ModelError(f"{self.config}: the model has no image_size, so its resolution is not known.")
        return size * LATENT_FACTOR


def known_models() -> dict[str, ModelFiles]:
    """The models that have a name; of two places for the same weights, the one that is there."""
    return {
        "sd15": ModelFiles(
            name="sd15",
            config=MODELS / "cldm_v15.yaml",
            weights=find_file("models/control_sd15_seg.safetensors", "models/control_sd15_seg.pth"),
            detector_weights=find_file("annotator/ckpts/upernet_global_small.pth"),
            detector_config=None,
            how_to_get="hf download lllyasviel/ControlNet models/control_sd15_seg.pth "
            f"annotator/ckpts/upernet_global_small.pth --local-dir {home()}",
        ),
        "tiny": ModelFiles(
            name="tiny",
            config=MODELS / "tiny" / "cldm_tiny.yaml",
            weights=find_file(
                "models/tiny/control_tiny_seg.safetensors",
                "models/tiny/control_tiny_seg.safetensors.index.json",
            ),
            detector_weights=find_file("annotator/ckpts/upernet_tiny.safetensors"),
            detector_config=CONFIGS / "annotator" / "upernet_tiny.py",
            how_to_get="make tiny",
            guidance=3.0,  # more makes colours surer and small things rougher; see models/tiny/README.md
        ),
    }


def default_model() -> str:
    """SD 1.5 if its files are there, else the embedded model."""
    return "tiny" if known_models()["sd15"].missing() else "sd15"


def find_model(
    name: str,
    weights: str | None = None,
    detector_weights: str | None = None,
    detector_config: str | None = None,
) -> ModelFiles:
    """The files that a command line asks for.

    Args:
        name: ``sd15``, ``tiny``, ``auto`` for the better one that is there, or the path of a model's YAML.
        weights: replaces the model's weights; needed with a YAML.
        detector_weights: replaces the detector's weights; with a YAML, the original's detector is the
            default.
        detector_config: an mmseg config for other detectors; only together with their weights.

    Raises:
        ModelError: an unknown name, a detector's config without its weights, or files that are missing, with
            the command that brings them.
    """
    known = known_models()
    wanted, name = name, default_model() if name == "auto" else name
    if name in known:
        files = known[name]
    elif Path(name).suffix in (".yaml", ".yml") and weights is not None:
        files = replace(known["sd15"], name=Path(name).stem, config=Path(name), how_to_get="")
    else:
        what = (
            "a YAML needs --weights"
            if Path(name).suffix in (".yaml", ".yml")
            else "it is no name and no YAML file"
        )
        raise ModelError(
            f"--model {name}: {what}. Known names are {', '.join(known)}; or give --model YAML --weights "
            "FILE."
        )
    if weights is not None:
        files = replace(files, weights=Path(weights))
    check_detector_options(detector_weights, detector_config)
    if detector_weights is not None:
        config = Path(detector_config) if detector_config else None
        files = replace(files, detector_weights=Path(detector_weights), detector_config=config)
    missing = files.missing()
    if missing:
        how = f" This command brings them: {files.how_to_get}" if files.how_to_get else ""
        if wanted == "auto":
            how += f"; for Stable Diffusion 1.5 it is: {known['sd15'].how_to_get}"
        raise ModelError(
            f"Model {files.name}: there is no {', no '.join(str(path) for path in missing)}.{how}"
        )
    return files


def check_detector_options(weights: str | None, config: str | None) -> None:
    """Raise a ModelError for a detector's config that comes without the weights of that network."""
    if config is not None and weights is None:
        raise ModelError(f"--detector-config {config} needs --detector-weights, the weights of that network.")


def load_generator(
    files: ModelFiles, device: str = "auto", precision: str = "auto", save_memory: bool = False
) -> Generator:
    """Load a model; the detector loads at its first use.

    Args:
        files: of ``find_model``.
        device: ``auto`` for the first GPU if there is one, or torch's name of a device.
        precision: ``auto`` for fp16 on a GPU and fp32 elsewhere, or one of ``PRECISIONS``.
        save_memory: networks rest in main memory, and attention works in slices.

    Raises:
        ModelError: an unknown device or precision.
        WeightsError: files that do not fit.
    """
    from cldm.model import load_model

    target = find_device(device)
    if precision == "auto":
        precision = "fp16" if target.type == "cuda" else "fp32"
    if precision not in PRECISIONS:
        raise ModelError(f"--precision {precision} is not known; choose auto, {', '.join(PRECISIONS)}.")
    rests = save_memory and target.type != "cpu"
    model = load_model(files.config, files.weights, "cpu" if rests else target, PRECISIONS[precision])
    if rests:  # the networks stay; what the sampler reads between them comes along
        for name, buffer in model.named_buffers(recurse=False):
            setattr(model, name, buffer.to(target))
    if target.type == "cpu":
        pack_weights(model)
    detectors = {"seg": SegmentationDetector(files.detector_weights, files.detector_config, device=target)}
    return Generator(model, detectors, files.name, files.resolution, save_memory, target, files.guidance)


def find_device(name: str) -> torch.device:
    """``auto``, or torch's name of a device that is there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The options by which every front end chooses its model."""
    parser.add_argument(
        "--model", default="auto", help="sd15, tiny, or a YAML (default: sd15 if its files are there)"
    )
    parser.add_argument("--weights", help="weights of the model, instead of its own; needed with a YAML")
    parser.add_argument("--detector-weights", help="weights of the detector, instead of the model's own")
    parser.add_argument("--detector-config", help="mmseg config of the detector; needed for other detectors")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1 … (default: a GPU if there is one)"
    )
    parser.add_argument(
        "--precision", default="auto", choices=["auto", *PRECISIONS], help="(default: fp16 on a GPU)"
    )
    parser.add_argument("--save-memory", action="store_true", help="slower, in less GPU memory")


def generator_from_options(options: argparse.Namespace) -> Generator:
    """The generator that the options of ``add_model_arguments`` ask for.

    Raises:
        ModelError: as ``find_model`` and ``load_generator``; WeightsError: files that do not fit.
    """
    files = find_model(options.model, options.weights, options.detector_weights, options.detector_config)
    return load_generator(files, options.device, options.precision, options.save_memory)


def generator_or_exit(options: argparse.Namespace) -> Generator:
    """As ``generator_from_options`` for command lines: an error is one line, and the exit status is not 0."""
    try:
        return generator_from_options(options)
    except (ModelError, WeightsError) as error:
        raise SystemExit(f"error: {error}") from None
