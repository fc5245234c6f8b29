"""One request, varied along two axes, and one labelled picture that shows what came of it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from controlnet.generation.generator import Generator
from controlnet.generation.request import RANGES, Request, RequestError, setting_type, short_repr
from controlnet.generation.result import Result
from controlnet.generation.samplers import SAMPLERS
from controlnet.generation.watcher import Step

AXES: dict[str, str] = {
    "prompt": "Prompt",
    "seed": "Seed",
    "strength": "Control Strength",
    "scale": "Guidance Scale",
    "ddim_steps": "Steps",
    "sampler": "Sampler",
}
"""The settings that an axis may vary, by their name in a request, with a title for people."""

_SHORT = {"strength": "strength", "scale": "guidance", "ddim_steps": "steps", "seed": "seed"}
_SHARED = ("hint", "control_picture", "shown", "shown_further")
_SPAN = re.compile(r"(\d+)\s*(?:-|\.\.|…)\s*(\d+)")
_MOST_OF_A_SPAN = 1000


@dataclass(frozen=True)
class Axis:
    """A setting and the values that it takes, in order.

    Args:
        name: one of `AXES`; nothing for an axis of one place that varies nothing.
        values: each once.

    Raises:
        RequestError: an unknown name, or no values.
    """

    name: str = ""
    values: tuple[Any, ...] = ("",)

    def __post_init__(self) -> None:
        if self.name and self.name not in AXES:
            raise RequestError(f"An axis is one of {', '.join(AXES)}, got {short_repr(self.name)}.")
        object.__setattr__(self, "values", tuple(dict.fromkeys(self.values)))
        if not self.values:
            raise RequestError(f"The axis {self.name} has no values: give at least one.")
        if self.name == "seed" and any(isinstance(seed, int) and seed < 0 for seed in self.values):
            raise RequestError("The seeds of an axis are numbers from 0.")

    def settings(self, place: int) -> dict[str, Any]:
        """What is different at a place of the axis."""
        return {self.name: self.values[place]} if self.name else {}

    @property
    def labels(self) -> list[str]:
        """What stands beside the rows or above the columns."""
        return [self.label(place) for place in range(len(self.values))]

    def label(self, place: int) -> str:
        """What stands beside a row or above a column."""
        value = self.values[place]
        if self.name == "sampler" and value in SAMPLERS:
            return SAMPLERS[value].title
        text = f"{value:g}" if isinstance(value, float) else str(value)
        return f"{_SHORT[self.name]} {text}" if self.name in _SHORT else text


@dataclass(frozen=True)
class Grid:
    """Two axes; row by row, each place of one meets each place of the other.

    Raises:
        RequestError: both vary the same setting.
    """

    rows: Axis
    columns: Axis = Axis()

    def __post_init__(self) -> None:
        if self.rows.name and self.rows.name == self.columns.name:
            raise RequestError(f"Rows and columns both vary {self.rows.name}: choose two settings.")

    def __len__(self) -> int:
        return len(self.rows.values) * len(self.columns.values)

    def places(self) -> Iterator[tuple[int, int]]:
        """Row and column of every cell, in order."""
        for row in range(len(self.rows.values)):
            for column in range(len(self.columns.values)):
                yield row, column

    def settings(self, row: int, column: int) -> dict[str, Any]:
        """What a cell has different from the others."""
        return {**self.rows.settings(row), **self.columns.settings(column)}

    def label(self, row: int, column: int) -> str:
        """What a cell has different, in words; the shorter part first."""
        parts = sorted((self.rows.label(row), self.columns.label(column)), key=len)
        return " · ".join(filter(None, parts))

    def check_count(self, most: int) -> None:
        """Raise a RequestError where there are more than ``most`` cells."""
        if len(self) > most:
            raise RequestError(f"{len(self)} pictures are more than the {most} of a grid: take fewer values.")

    def requests(self, request: Request) -> list[Request]:
        """The requests of all cells, one picture each; all share the seed where no axis varies it.

        Raises:
            RequestError: a value that no request takes; found before anything is made.
        """
        base = dataclasses.replace(request.with_seed(), num_samples=1)
        return [dataclasses.replace(base, **self.settings(*place)) for place in self.places()]


def note_of(grid: Grid, settings: Mapping[str, Any], model: str) -> str:
    """What all cells have in common, in one line. ``settings`` are those of the request of any of them."""
    varied = {grid.rows.name, grid.columns.name}
    common = [Axis(name, (settings[name],)) for name in AXES if name not in varied]
    texts = [axis.label(0) for axis in common if axis.values[0] not in (None, "")]
    return " · ".join([*texts, str(settings["condition"]), *([model] if model else [])])


def read_axis(name: str, text: str) -> Axis:
    """An axis from what a person wrote.

    Prompts stand one a line. Numbers and samplers stand between commas, semicolons, or on lines of their own;
    ``3-6`` is four whole numbers. Samplers go by name or title.

    Raises:
        RequestError: as `Axis`, and for what is no number or no sampler; the text names it.
    """
    if name not in AXES:
        raise RequestError(f"An axis is one of {', '.join(AXES)}, got {short_repr(name)}.")
    if name == "prompt":
        return Axis(name, tuple(line.strip() for line in text.splitlines() if line.strip()))
    words = [word.strip() for word in re.split(r"[,;\n]", text) if word.strip()]
    if name == "sampler":
        return Axis(name, tuple(map(_sampler, words)))
    numbers = [number for word in words for number in _numbers(name, word)]
    return Axis(name, tuple(numbers))


def axis_of_values(name: str, values: Any) -> Axis:
    """An axis from JSON: a list of values, or text as `read_axis` takes it. Nothing varies nothing."""
    if isinstance(values, str):
        return read_axis(name, values)
    if not isinstance(values, Sequence):
        raise RequestError(f"The values of the axis {name} must be a list, got {short_repr(values)}.")
    if not all(isinstance(value, str | int | float) for value in values):
        raise RequestError(f"The values of the axis {name} must be numbers or texts.")
    return Axis(name, tuple(values))


def axis_of_object(content: Mapping[str, Any]) -> Axis:
    """An axis from a JSON object of one name and its values, such as ``{"seed": [1, 2, 3]}``."""
    if not content:
        return Axis()
    if len(content) > 1:
        raise RequestError(f"An axis varies one setting, got {', '.join(map(str, content))}.")
    ((name, values),) = content.items()
    return axis_of_values(name, values)


def _numbers(name: str, word: str) -> list[int] | list[float]:
    kind, span = setting_type(name), _SPAN.fullmatch(word)
    if span and kind is int:
        first, last = (int(number) for number in span.groups())
        if last - first >= _MOST_OF_A_SPAN:
            raise RequestError(f"{AXES[name]} {word} are {last - first + 1} values: too many.")
        return list(range(first, last + 1)) or _none(name, word)
    try:
        return [kind(word)]
    except ValueError:
        return _none(name, word)


def _none(name: str, word: str) -> list[Any]:
    low, high = RANGES[name]
    whole = "whole numbers" if setting_type(name) is int else "numbers"
    raise RequestError(f"{AXES[name]} {short_repr(word)}: {whole} from {low:g} to {high:g} are wanted.")


def _sampler(word: str) -> str:
    for name, kind in SAMPLERS.items():
        if word.lower() in (name, kind.title.lower()):
            return name
    raise RequestError(f"Sampler {short_repr(word)}: there are {', '.join(SAMPLERS)}.")


@dataclass(frozen=True, eq=False)
class Cell:
    """One finished picture of a grid."""

    row: int
    column: int
    result: Result


def generate_grid(
    generator: Generator,
    grid: Grid,
    requests: Sequence[Request],
    *,
    measure: bool = False,
    on_step: Callable[[Step], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[Cell]:
    """Carry out the requests of a grid, one after the other. What steers is detected once.

    Args:
        requests: of ``grid.requests``.
        measure, on_step, should_stop: as in ``Generator.generate``.

    Raises:
        Cancelled, GenerationError: as ``Generator.generate``; the cells before were given already.
    """
    hint = requests[0].hint if requests[0].hint is not None else generator.hint(requests[0])
    work = partial(generator.generate, measure=measure, on_step=on_step, should_stop=should_stop)
    first: Result | None = None
    for (row, column), request in zip(grid.places(), requests, strict=True):
        further = first.request.further if first else request.further
        result = work(dataclasses.replace(request, hint=hint, further=further))
        first = first or result
        # What all share is kept once: a visitor's session holds all cells.
        same = {name: getattr(first, name) for name in _SHARED}
        yield Cell(row, column, dataclasses.replace(result, **same))
