"""Example scenes that ship with the project: a picture, its hint, and a prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controlnet.conditions import DEFAULT
from controlnet.generation.several_files import located

_OWN = ("picture", "hint", "prompt", "condition", "options")


@dataclass(frozen=True)
class Example:
    """One line of ``examples/examples.jsonl``, files beside it.

    ``{"picture": "lake.png", "hint": "lake_map.png", "condition": "seg", "options": {}, "prompt": "…"}``;
    without a ``hint`` one is detected, without a ``condition`` it is ``seg``. Any other setting of a request
    may stand beside, as in the lines that ``tool_generate.py`` reads: ``class_prompts``, ``further``,
    ``source``, ``mask``, ``denoise``…
    """

    picture: Path
    hint: Path | None
    prompt: str
    condition: str = DEFAULT
    options: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


def load_examples(folder: Path) -> list[Example]:
    """The examples of a folder, in their order; none where there is no list."""
    index = folder / "examples.jsonl"
    if not index.is_file():
        return []
    lines = [json.loads(line) for line in index.read_text(encoding="utf-8").split("\n") if line.strip()]
    return [
        Example(
            folder / line["picture"],
            folder / line["hint"] if "hint" in line else None,
            line["prompt"],
            line.get("condition", DEFAULT),
            line.get("options", {}),
            located({name: value for name, value in line.items() if name not in _OWN}, folder),
        )
        for line in lines
    ]
