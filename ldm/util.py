"""Small helpers that the whole code base shares: objects from YAML, defaults, captions as pictures.

Source: ldm/util.py of the original.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image, ImageDraw, ImageFont
from torch import nn

logger = logging.getLogger(__name__)

ALLOWED_TARGETS = ["ldm.", "cldm.", "annotator.", "controlnet.", "torch.nn."]
"""Module prefixes that a YAML ``target:`` may name; more by `allow_targets`. A model file from a stranger
must not choose what is imported.
"""

ALLOW_VARIABLE = "CONTROLNET_ALLOW_TARGETS"
"""Environment variable with more prefixes, separated by commas."""

# Placeholders of the original's YAML files that stand for "there is no such model".
_NO_MODEL = ("__is_first_stage__", "__is_unconditional__")


def exists(value: Any) -> bool:
    """True unless ``value`` is None."""
    return value is not None


def default(value: Any, fallback: Any) -> Any:
    """``value``, or where it is None ``fallback`` (called if it is a function)."""
    if value is not None:
        return value
    return fallback() if inspect.isfunction(fallback) or inspect.ismethod(fallback) else fallback


def ismap(x: Any) -> bool:
    """True for a tensor ``[B, C, H, W]`` with more than three channels: a feature map, not a picture."""
    return isinstance(x, torch.Tensor) and x.ndim == 4 and x.shape[1] > 3


def isimage(x: Any) -> bool:
    """True for a tensor ``[B, C, H, W]`` with one or three channels."""
    return isinstance(x, torch.Tensor) and x.ndim == 4 and x.shape[1] in (1, 3)


def mean_flat(tensor: torch.Tensor) -> torch.Tensor:
    """Mean over all dimensions but the first: ``[B, ...] -> [B]``."""
    return tensor.mean(dim=list(range(1, tensor.ndim)))


def count_params(model: nn.Module, verbose: bool = False) -> int:
    """Number of parameters of ``model``; with ``verbose`` it is logged too."""
    total = sum(parameter.numel() for parameter in model.parameters())
    if verbose:
        logger.info("%s has %.2f M parameters", type(model).__name__, total * 1e-6)
    return total


def log_txt_as_img(wh: tuple[int, int], xc: list[str], size: int = 10) -> torch.Tensor:
    """Draw captions as pictures, for logs.

    Args:
        wh: width and height in pixels.
        xc: B captions.
        size: height of the font in pixels.

    Returns:
        float32 ``[B, 3, H, W]`` in [-1, 1], black on white.
    """
    width, height = wh
    font = ImageFont.load_default(size=size)
    characters_per_line = max(1, int(40 * width / 256 * 10 / size))
    pictures = []
    for caption in xc:
        lines = [caption[i : i + characters_per_line] for i in range(0, len(caption), characters_per_line)]
        canvas = Image.new("RGB", (width, height), color="white")
        ImageDraw.Draw(canvas).text((0, 0), "\n".join(lines), fill="black", font=font)
        pictures.append(np.asarray(canvas, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1.0)
    return torch.from_numpy(np.stack(pictures))


# Called with the parameters and ``lr=``.
OptimizerFactory = Callable[..., torch.optim.Optimizer]


def with_schedule(optimizer: torch.optim.Optimizer, scheduler_config: Mapping[str, Any] | None) -> Any:
    """What Lightning's ``configure_optimizers`` returns for an optimizer with a learning-rate schedule, or
    without.

    Args:
        scheduler_config: YAML node of an object whose ``schedule(step)`` is the factor for the learning rate;
            or None.
    """
    if scheduler_config is None:
        return optimizer
    schedule = instantiate_from_config(scheduler_config).schedule
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda=schedule)
    return [optimizer], [{"scheduler": scheduler, "interval": "step", "frequency": 1}]


def allow_targets(*prefixes: str) -> None:
    """Let YAML targets name modules below these prefixes too, such as "models." for ``models/`` of a project.

    Name your own packages only: a model file can then build any class in them, with any arguments.
    """
    for prefix in map(_with_dot, prefixes):
        if prefix not in ALLOWED_TARGETS:
            ALLOWED_TARGETS.append(prefix)


def _allowed_targets() -> tuple[str, ...]:
    asked_for = [prefix.strip() for prefix in os.environ.get(ALLOW_VARIABLE, "").split(",")]
    return *ALLOWED_TARGETS, *(_with_dot(prefix) for prefix in asked_for if prefix)


def _with_dot(prefix: str) -> str:
    """``models`` -> ``models.``, so that the prefix ends where a name does."""
    if not prefix.strip("."):
        raise ValueError(f"got {prefix!r} as a prefix of targets; expected the name of a package")
    return prefix if prefix.endswith(".") else f"{prefix}."


def instantiate_from_config(config: Mapping[str, Any] | str) -> Any:
    """Build the object that a YAML node describes: ``target`` is a class path, ``params`` its keyword
    arguments.

    Only classes that are defined below one of `ALLOWED_TARGETS` are built; see `allow_targets`. The strings
    ``__is_first_stage__`` and ``__is_unconditional__`` give None, as in the original.

    Raises:
        KeyError: the node has no ``target``.
        ValueError: the target is not allowed or not there, or a parameter is unknown; the text names target
            and key.
    """
    if isinstance(config, str) and config in _NO_MODEL:
        return None
    if not isinstance(config, Mapping | DictConfig) or "target" not in config:
        raise KeyError(f"expected key `target` to instantiate, got {config!r}")
    target = config["target"]
    where = _yaml_key(config, "target")
    cls = get_obj_from_str(target, where=where)
    if not inspect.isclass(cls):
        raise ValueError(f"{where}: target {target!r} is a {type(cls).__name__}, expected a class")
    params = config.get("params") or {}
    if not cls.__module__.startswith("torch."):  # torch refuses by itself, and its Identity takes anything
        known = _constructor_parameters(cls)
        unknown = [name for name in params if name not in known]
        if unknown:
            raise ValueError(
                f"{_yaml_key(config, 'params')}: {target} takes no parameter "
                f"{', '.join(map(repr, unknown))}; it takes {', '.join(sorted(known))}"
            )
    return cls(**params)


def get_obj_from_str(string: str, reload: bool = False, where: str = "target") -> Any:
    """The object at a dotted path such as ``cldm.cldm.ControlNet``, if it is allowed.

    Args:
        string: module path and name.
        reload: load the module anew.
        where: the place (YAML key) that error texts name.
    """
    allowed = _allowed_targets()
    if not isinstance(string, str) or not string.startswith(allowed):
        raise ValueError(
            f"{where}: target {string!r} is not allowed; it must start with one of {allowed}. If it is your "
            f"own, call ldm.util.allow_targets(...) with its package, or name that in {ALLOW_VARIABLE}."
        )
    module_name, _, name = string.rpartition(".")
    try:
        module = importlib.import_module(module_name)
        found = getattr(importlib.reload(module) if reload else module, name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{where}: target {string!r} is not there: {error}") from error
    # A module's own imports are not targets: `ldm.util.importlib` would open the way to everything else.
    home = getattr(found, "__module__", None)
    if not isinstance(home, str) or not f"{home}.".startswith(allowed):
        raise ValueError(f"{where}: target {string!r} is not allowed; it is defined in {home!r}")
    return found


def _constructor_parameters(cls: type) -> set[str]:
    """The parameters of ``cls`` and, where it hands ``**kwargs`` on, of its base class and so on."""
    parameters = inspect.signature(cls.__init__).parameters.values()
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"self"}
    hands_on = any(p.kind is p.VAR_KEYWORD for p in parameters)
    is_ours = not cls.__base__.__module__.startswith(("torch.", "pytorch_lightning.", "builtins"))
    return names | _constructor_parameters(cls.__base__) if hands_on and is_ours else names


def _yaml_key(config: Mapping[str, Any], key: str) -> str:
    """Full key of a YAML node (``model.params.unet_config.target``), or the bare key for plain
    dictionaries.
    """
    return config._get_full_key(key) if isinstance(config, DictConfig) else key
