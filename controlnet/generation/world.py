"""What a model can draw, where that is less than everything: its classes, and the words that it learned."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


@dataclass(frozen=True)
class World:
    """The world that a small model knows. It lies beside the weights as ``world.json``.

    Args:
        about: what it draws, in the plural, such as "drawn landscapes".
        classes: of ADE20K, by name: those that it can draw.
        choices: by what is chosen (such as "season") and by choice, the phrases that say so. The first is
            what front ends write into a prompt; all are recognised. The choice "" is the thing without it,
            as "a house" is without a colour.
        words: in lower case: all that it has seen in prompts.
        icons: a picture of each class, squares side by side, as a ``data:`` URL; or nothing.
    """

    about: str
    classes: tuple[str, ...]
    choices: Mapping[str, Mapping[str, tuple[str, ...]]]
    words: frozenset[str]
    icons: str = ""

    def unknown_words(self, prompt: str) -> list[str]:
        """The words of a prompt that the model has never seen, each once, in their order."""
        return list(dict.fromkeys(word for word in _WORD.findall(prompt.lower()) if word not in self.words))

    def summary(self) -> dict[str, Any]:
        """Everything but the icons, ready for JSON; ``read_world`` reads it."""
        return {
            "about": self.about,
            "classes": list(self.classes),
            "choices": {kind: {k: list(v) for k, v in by.items()} for kind, by in self.choices.items()},
            "words": sorted(self.words),
        }


def read_world(path: Path) -> World:
    """A ``world.json``, with the ``icons.webp`` beside it if there is one.

    Raises:
        ValueError: no such object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        choices = {
            kind: {choice: tuple(phrases) for choice, phrases in by.items()}
            for kind, by in content["choices"].items()
        }
        file = path.with_name("icons.webp")
        icons = "data:image/webp;base64," + b64encode(file.read_bytes()).decode() if file.is_file() else ""
        return World(content["about"], tuple(content["classes"]), choices, frozenset(content["words"]), icons)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: does not say what a model draws ({error!r}).") from error
