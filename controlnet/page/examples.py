"""Example scenes that ship with the project: a picture, its map, and a prompt."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controlnet.page.map_editor import show_map
from controlnet.pictures import read_index_map, read_picture


@dataclass(frozen=True)
class Example:
    """One line of ``examples/examples.jsonl``: ``{"picture": …, "map": …, "prompt": …}``, files beside it."""

    picture: Path
    map: Path
    prompt: str

    def values(self) -> tuple[str, dict[str, Any], str]:
        """What the page's picture, editor and prompt take."""
        return str(self.picture), show_map(read_index_map(self.map), read_picture(self.picture)), self.prompt


def load_examples(folder: Path) -> list[Example]:
    """The examples of a folder, in their order; none where there is no list."""
    index = folder / "examples.jsonl"
    if not index.is_file():
        return []
    lines = [json.loads(line) for line in index.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [Example(folder / line["picture"], folder / line["map"], line["prompt"]) for line in lines]
