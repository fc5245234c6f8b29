"""The numbers that the page offers, and how a link's settings are fitted to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controlnet.conditions import find_condition
from controlnet.generation.generator import Generator
from controlnet.generation.request import default_detect_resolution

SETTINGS = (
    "prompt", "a_prompt", "n_prompt", "num_samples", "image_resolution", "detect_resolution", "ddim_steps",
    "guess_mode", "strength", "scale", "seed", "eta", "sampler", "guidance_start", "guidance_end",
    "control_start", "control_end", "control_mode", "prompt_syntax",
)  # fmt: skip
"""The settings of a request in the order of the page's components."""

MAX_CELLS = 36
"""Pictures of one grid: it has the model for itself as long as they take."""

MAX_FILES = 60
"""Pictures that are worked on at once."""
MAX_BYTES = 200_000_000
"""Of those pictures together."""


def page_ranges(resolution: int) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of the page's numbers, the original's but for sizes, which go with the model's
    ``resolution``: the short side in pixels that it was trained at.
    """
    return {
        "num_samples": (1, 12),
        "image_resolution": (max(64, resolution // 2), -(-resolution * 3 // 128) * 64),
        "detect_resolution": (max(64, resolution // 4), 2 * resolution),
        "ddim_steps": (1, 100),
        "strength": (0.0, 2.0),
        "scale": (0.1, 30.0),
        "seed": (-1, 2**31 - 1),
        "eta": (0.0, 1.0),
    }


def fitted_to_page(
    settings: Mapping[str, Any], model: str, generator: Generator
) -> tuple[dict[str, Any], str]:
    """A link's settings for this page.

    Sizes and guidance of another model, and sizes that the page does not offer, become those of this page's
    model; other numbers are moved into the page's ranges.

    Args:
        settings: of a request; None stands for the model's own.
        model: that the link names, or nothing.

    Returns:
        All settings with definite values, and a sentence that says what is different, or nothing.
    """
    ranges, fitted = page_ranges(generator.resolution), dict(settings)
    outside = [
        name
        for name, (low, high) in ranges.items()
        if fitted[name] is not None and not low <= fitted[name] <= high
    ]
    condition, said = find_condition(settings["condition"]), ""
    own = {
        "image_resolution": generator.resolution,
        "detect_resolution": default_detect_resolution(condition, generator.resolution),
        "scale": generator.guidance,
    }
    if (model and model != generator.name) or set(own) & set(outside):
        said = _what_became(settings, model, own, generator.name)
        fitted |= own
    fitted |= {name: value for name, value in own.items() if fitted[name] is None}
    for name in set(outside) - set(own):
        fitted[name] = min(max(fitted[name], ranges[name][0]), ranges[name][1])
        said += f" {name} {settings[name]} is out of this page's range and became {fitted[name]}."
    return fitted, said.strip()


def _what_became(settings: Mapping[str, Any], model: str, own: Mapping[str, Any], name: str) -> str:
    changes = ", ".join(f"{key} {value:g}" for key, value in own.items() if value != settings[key])
    if model and model != name:
        why = f"It was made with the model {model[:40]}, this page has {name}:"
    else:
        why = f"Its sizes or guidance are none that this page offers with its model {name}:"
    return f"{why} {changes} are used instead." if changes else f"{why} its other settings are kept."
