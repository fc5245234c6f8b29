"""What comes of a request."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from controlnet.conditions import Hint, Score
from controlnet.generation.packing import pack_hint
from controlnet.generation.png import metadata_text
from controlnet.generation.request import Request
from controlnet.generation.several_files import packed


@dataclass(frozen=True, eq=False)
class Result:
    """What came of a request.

    ``request`` has a definite seed, sizes and guidance. ``pictures`` are uint8 RGB ``[H, W, 3]``. ``hint`` is
    at their size, ``control_picture`` what the network saw of it and ``shown`` what a person sees of it, both
    uint8 RGB ``[H, W, 3]``; ``shown_further`` are those of the further controls, whose hints the request
    has. ``scores`` has one entry a picture, or none where nothing was measured.
    ``remarks`` are sentences for the person, such as that nothing was found.
    """

    request: Request
    pictures: tuple[np.ndarray, ...]
    hint: Hint
    control_picture: np.ndarray
    shown: np.ndarray
    scores: tuple[Score, ...] = ()
    remarks: tuple[str, ...] = ()
    seconds: float = 0.0
    model: str = ""
    precision: str = ""
    shown_further: tuple[np.ndarray, ...] = ()
    best_hint: Hint | None = None
    """The hint that a second pass was made from, where it is not ``hint``."""

    @property
    def all_shown(self) -> tuple[np.ndarray, ...]:
        """What a person sees of every hint."""
        return (self.shown, *self.shown_further)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each picture."""
        return self.request.seeds

    @cached_property
    def packed_hint(self) -> dict[str, Any]:
        """The hint as a small JSON object."""
        return pack_hint(self.hint if self.best_hint is None else self.best_hint)

    @cached_property
    def packed_further(self) -> dict[str, Any]:
        """What is beside it, for JSON; see `several_files.packed`."""
        return packed(self.request)

    def metadata(self, index: int) -> str:
        """The text that picture ``index`` carries when it is saved."""
        return metadata_text(
            self.request, self.packed_hint, index, self.model, self.precision, self.packed_further
        )
