"""Example scenes that ship with the project: a picture, its hint, and a prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from controlnet.conditions import DEFAULT


@dataclass(frozen=True)
class Example:
    """One line of ``examples/examples.jsonl``, files beside it.

    ``{"picture": "lake.png", "hint": "lake_map.png", "condition": "seg", "options": {}, "prompt": "…"}``;
    without a ``hint`` one is detected, without a ``condition`` it is ``seg``. ``class_prompts`` may stand
    beside.
    """

    picture: Path
    hint: Path | None
    prompt: str
    condition: str = DEFAULT
    options: Mapping[str, float] = field(default_factory=dict)
    class_prompts: Mapping[str, str] = field(default_factory=dict)


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
            line.get("class_prompts", {}),
        )
        for line in lines
    ]
