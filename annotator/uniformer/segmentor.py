"""Any mmseg segmentor: from a config file to class indices.

A config is a Python file that mmengine executes: give only paths that the user chose, never one from a
request.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from annotator import ade20k
from annotator.uniformer.openmmlab import import_mmseg
from annotator.uniformer.upernet_inference import UPerHeadForInference, can_be_rearranged
from ldm.weights import load_file_into

if TYPE_CHECKING:
    from mmengine.config import Config

# Values held at a time when classes are compared at full size: 150 classes at 32 megapixels would be 19 GB.
_VALUES_AT_ONCE = 2**21
_MIN_SIDE = 32  # the coarsest features of nearly every backbone are at 1/32 of the picture


def read_config(path: str | Path) -> Config:
    """Execute an mmseg config file.

    Raises:
        ValueError: no such file, one that fails, or one without a ``model``.
    """
    import_mmseg()
    from mmengine.config import Config

    if not Path(path).is_file():
        raise ValueError(
            f"{path}: no such config file; an mmseg config is wanted, such as those in configs/annotator."
        )
    try:
        config = Config.fromfile(str(path))
    except ImportError as error:
        raise ValueError(f"{path}: the config needs a package that is not installed ({error}).") from error
    except Exception as error:  # a config is a program, and may fail in any way
        raise ValueError(f"{path}: the config cannot be run ({type(error).__name__}: {error}).") from error
    if "model" not in config:
        raise ValueError(f"{path}: the config has no `model`.")
    return config


def build_segmentor(config: str | Path | Config) -> nn.Module:
    """Build the network of an mmseg config with random weights, for training or to load a checkpoint into.

    Nothing is downloaded: ``pretrained`` weights that a config names are left out. SyncBN becomes BN, which
    has the same parameters and results and works on one device.

    Args:
        config: an mmseg config, or the path of one.

    Returns:
        An mmseg segmentor (usually ``EncoderDecoder``) on the CPU in train mode.

    Raises:
        ValueError: a config file that is missing or has no model, or a model that mmseg cannot build.
    """
    if isinstance(config, str | Path):
        config = read_config(config)
    import_mmseg()
    from mmengine.config import ConfigDict
    from mmengine.registry import DefaultScope
    from mmseg.registry import MODELS

    import annotator.uniformer.backbone  # noqa: F401 - registers UniFormer

    try:
        with DefaultScope.overwrite_default_scope(config.get("default_scope") or "mmseg"):
            return MODELS.build(ConfigDict(_for_one_device(config["model"])))
    except (KeyError, TypeError, AssertionError) as error:
        source = getattr(config, "filename", None) or "the config"
        raise ValueError(f"{source}: mmseg cannot build this model ({error}).") from error


def load_segmentor(
    config: Config, checkpoint: str | Path, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Build a network and load its weights strictly, in eval mode and without its auxiliary head.

    Raises:
        WeightsError: a checkpoint that is missing, damaged or does not fit the config, with the keys that
            differ.
        ValueError: as ``build_segmentor``, and a network with more than 256 classes.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Default ``avg_non_ignore``"
        )  # of the losses, not used here
        model = build_segmentor(config)
    if not hasattr(model, "decode_head"):
        raise ValueError(
            f"{config.filename}: a {type(model).__name__} is no encoder with a decoder (EncoderDecoder)."
        )
    if model.num_classes > 256:
        raise ValueError(
            f"{config.filename}: {model.num_classes} classes; index maps of 8 bits hold at most 256."
        )
    hint = (
        f"The config is {config.filename}: checkpoint and config must belong together, with the same classes."
    )
    load_file_into(model, checkpoint, hint=hint)
    model.auxiliary_head = None  # helps only training
    for part in (model.backbone, getattr(model, "neck", None), model.decode_head):
        if part is not None:
            part.to(dtype=dtype, memory_format=torch.channels_last)
    model = model.to(device).eval().requires_grad_(False)
    if can_be_rearranged(model.decode_head):
        model.decode_head = UPerHeadForInference(model.decode_head)
    return model


def build_pipeline(config: Config) -> list[Any]:
    """The transforms of a config's test pipeline, changed to start from an array and to need no
    annotation.
    """
    import_mmseg()
    from mmseg.registry import TRANSFORMS

    pipeline = config.get("test_pipeline")
    if pipeline is None:
        pipeline = config.get("test_dataloader", {}).get("dataset", {}).get("pipeline")
    if not pipeline:
        raise ValueError(f"{config.filename}: the config has no `test_pipeline`.")
    steps = [dict(step) for step in pipeline if not step["type"].endswith("Annotations")]
    first = steps[0]["type"]
    if not first.startswith("LoadImage"):
        raise ValueError(
            f"{config.filename}: `test_pipeline` begins with {first}, not with LoadImageFromFile."
        )
    steps[0] = {"type": "LoadImageFromNDArray", "to_float32": steps[0].get("to_float32", False)}
    return [TRANSFORMS.build(step) for step in steps]


def classes_and_palette(config: Config, num_classes: int) -> tuple[tuple[str, ...], np.ndarray]:
    """The names and colours of a network's classes: ADE20K's for 150, else those of the data set in the
    config.

    Returns:
        names, and uint8 ``[num_classes, 3]`` RGB; where nobody names them, "class 0" and so on, in greys.
    """
    if num_classes == len(ade20k.CLASSES):
        return ade20k.CLASSES, ade20k.PALETTE
    import_mmseg()
    from mmseg.registry import DATASETS

    dataset = DATASETS.get(config.get("dataset_type") or "")
    known = getattr(dataset, "METAINFO", {})
    if len(known.get("classes", ())) == len(known.get("palette", ())) == num_classes:
        return tuple(known["classes"]), np.array(known["palette"], dtype=np.uint8)
    grey = np.linspace(0, 255, num_classes).astype(np.uint8)
    return tuple(f"class {i}" for i in range(num_classes)), np.stack([grey] * 3, axis=1)


@torch.inference_mode()
def predict_labels(
    model: nn.Module, pipeline: Sequence[Any], pictures: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Classify every pixel, as mmseg's ``inference_model`` does.

    Args:
        model: from ``load_segmentor``.
        pipeline: from ``build_pipeline``.
        pictures: uint8 ``[H, W, 3]`` in the order that the pipeline expects, BGR in mmseg; all of one size.

    Returns:
        One uint8 ``[H, W]`` per picture.

    Raises:
        ValueError: a picture so narrow that too little of it is left at the network's size.
    """
    samples = [_prepare(pipeline, picture) for picture in pictures]
    batch = {name: [sample[name] for sample in samples] for name in ("inputs", "data_samples")}
    batch = model.data_preprocessor(batch, training=False)
    dtype = next(model.decode_head.parameters()).dtype
    inputs = batch["inputs"].to(dtype, memory_format=torch.channels_last)
    metas = [sample.metainfo for sample in batch["data_samples"]]
    if _only_enlarges(model):
        logits = model.decode_head(model.extract_feat(inputs))
    else:
        logits = model.inference(inputs, metas)
    size = tuple(inputs.shape[2:])
    return [_labels(model, logits[i : i + 1], size, meta).cpu().numpy() for i, meta in enumerate(metas)]


def _prepare(pipeline: Sequence[Any], picture: np.ndarray) -> dict[str, Any]:
    height, width = picture.shape[:2]
    too_narrow = (
        f"A picture of {width}x{height} pixels is too narrow: resized for the detector, it has less than"
    )
    sample: Any = {"img": picture}
    try:
        for step in pipeline:
            sample = step(sample)
    except cv2.error as error:
        raise ValueError(f"{too_narrow} a pixel.") from error
    if min(sample["inputs"].shape[1:]) < _MIN_SIDE:
        raise ValueError(f"{too_narrow} {_MIN_SIDE} pixels on one side.")
    return sample


def _only_enlarges(model: nn.Module) -> bool:
    """Whether mmseg would do no more to the head's logits than enlarge them to the size of the network's
    input.
    """
    from mmseg.models import EncoderDecoder
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead

    if type(model) is not EncoderDecoder or model.test_cfg.get("mode", "whole") != "whole":
        return False
    head = model.decode_head
    head = type(head.head if isinstance(head, UPerHeadForInference) else head)
    return head.predict is BaseDecodeHead.predict and head.predict_by_feat is BaseDecodeHead.predict_by_feat


def _labels(model: nn.Module, logits: Tensor, size: tuple[int, int], meta: dict[str, Any]) -> Tensor:
    """Logits ``[1, classes, h, w]`` -> uint8 labels ``[H, W]`` of the picture; ``size`` is the network's
    input's.
    """
    left, right, top, bottom = meta.get("img_padding_size", meta.get("padding_size", (0, 0, 0, 0)))
    picture_size = tuple(meta["ori_shape"][:2])

    def at_picture(part: Tensor) -> Tensor:
        part = enlarge(part.float(), size, model.align_corners)  # in 16 bits many classes would be equal
        part = part[:, :, top : size[0] - bottom, left : size[1] - right]
        if meta.get("flip"):
            part = part.flip(3 if meta["flip_direction"] == "horizontal" else 2)
        return enlarge(part, picture_size, model.align_corners)

    if logits.shape[1] == 1:
        return (at_picture(logits).sigmoid() > model.decode_head.threshold)[0, 0].to(torch.uint8)
    pixels = max(size[0] * size[1], picture_size[0] * picture_size[1])
    return argmax_in_parts(logits, at_picture, classes_at_once=max(1, _VALUES_AT_ONCE // pixels))[0]


def enlarge(x: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Resize ``[B, C, h, w]`` to ``[B, C, *size]``, bilinear."""
    return x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def argmax_in_parts(logits: Tensor, resize: Callable[[Tensor], Tensor], classes_at_once: int = 8) -> Tensor:
    """The class of the highest logit after a resize, without ever holding all classes at full size.

    Args:
        logits: ``[B, classes, h, w]``.
        resize: ``[B, C, h, w]`` -> ``[B, C, H, W]``, each channel by itself.
        classes_at_once: how many are resized at a time.

    Returns:
        uint8 ``[B, H, W]``; the lower class where two are equal.
    """
    best, labels = None, None
    for first in range(0, logits.shape[1], classes_at_once):
        values, classes = resize(logits[:, first : first + classes_at_once]).max(dim=1)
        classes = (classes + first).to(torch.uint8)
        if best is None:
            best, labels = values, classes
        else:
            better = values > best
            best, labels = torch.where(better, values, best), torch.where(better, classes, labels)
    return labels


def _for_one_device(config: Any) -> Any:
    """A copy of a model config without SyncBN and without weights to download."""
    if isinstance(config, dict):
        copy = {key: _for_one_device(value) for key, value in config.items() if key != "pretrained"}
        if copy.get("type") in ("SyncBN", "mmcv.SyncBN"):
            copy["type"] = "BN"
        if isinstance(copy.get("init_cfg"), dict) and copy["init_cfg"].get("type") == "Pretrained":
            del copy["init_cfg"]
        return copy
    if isinstance(config, list | tuple):
        return type(config)(_for_one_device(value) for value in config)
    return config
