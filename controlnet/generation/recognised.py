"""What the files of a model were recognised as, for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from controlnet.generation.models import ModelFiles
from ldm.layouts.recognise import Kind, expect, recognise, version_name
from ldm.weights import WeightsError


@dataclass(frozen=True)
class Recognised:
    """A file, what it serves as ("model", "control for canny"), and what it is, or why it cannot serve."""

    path: Path
    use: str
    what: str
    fits: bool = True


def recognised(files: ModelFiles) -> list[Recognised]:
    """What each file of a model that is there is, the model's first; nothing of its numbers is read."""
    result, width = [], None
    for path, use, role in _uses(files):
        if not path.exists():
            continue
        try:
            kind = _kind_as(path, role)
            width = kind.width if role == "model" else width
            if role == "control" and width not in (None, kind.width):
                raise WeightsError(f"this is {kind}, and the model is {version_name(width)}")
            result.append(Recognised(path, use, str(kind)))
        except WeightsError as error:
            result.append(Recognised(path, use, str(error).removeprefix(f"{path}: "), fits=False))
    return result


def _uses(files: ModelFiles) -> Iterator[tuple[Path, str, str]]:
    yield files.weights, "model", "model"
    conditions: dict[Path, list[str]] = {}
    for condition, path in files.controls.items():
        conditions.setdefault(path, []).append(condition)
    for path, names in conditions.items():
        yield path, f"control for {', '.join(names)}", "control"
    if files.vae:
        yield files.vae, "VAE", "vae"
    for path, weight in files.loras:
        yield path, f"LoRA, {weight:g} of it", "lora"
    for path in files.embeddings:
        yield path, f'embedding, "{path.stem}" in prompts', "embedding"


def _kind_as(path: Path, role: str) -> Kind:
    kind = recognise(path)
    if role not in kind.parts:
        expect(path, kind, role)
    return kind
