"""Several controls as JSON: in lines of requests, in settings of programs, in pictures' metadata and links.

An entry of ``further`` is an object with ``condition``, perhaps ``image`` or ``hint``, ``region``,
``strength``, ``start``, ``end`` and ``mode``, and options of the condition, beside these or in ``options``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from controlnet.conditions import find_condition
from controlnet.generation.checks import RequestError, short_repr
from controlnet.generation.class_prompts import read_class_map
from controlnet.generation.packing import (
    pack_hint,
    pack_source,
    read_hint,
    read_mask,
    unpack_hint,
    unpack_source,
)
from controlnet.generation.request import Request
from controlnet.generation.several import MAX_FURTHER, FurtherControl, said_of
from controlnet.pictures import PictureError, PictureSource, read_picture

FILES = ("image", "hint", "region")
"""Keys of an entry that name a picture."""

PICTURES: dict[str, Callable[[PictureSource], np.ndarray]] = {}
"""Settings of a request itself that name a picture, and what reads each."""

_KEYS = ("condition", "options", "strength", "start", "end", "mode", *FILES)

Opener = Callable[[Any], PictureSource]
"""From what stands in the place of a picture to a source that can be read."""


def entries_of(further: Any) -> list[dict[str, Any]]:
    """The entries of ``further`` from a stranger, their options in ``options``; values are not looked at.

    Raises:
        RequestError: no list of objects, too many, unknown keys or conditions.
    """
    if not isinstance(further, list | tuple) or not all(isinstance(entry, Mapping) for entry in further):
        raise RequestError(
            f"further must be a list of objects, each with a condition, got {short_repr(further)}."
        )
    if len(further) > MAX_FURTHER:
        raise RequestError(f"There are {len(further)} further controls; at most {MAX_FURTHER} are taken.")
    return [_entry(index, dict(entry)) for index, entry in enumerate(further)]


def _entry(index: int, entry: dict[str, Any]) -> dict[str, Any]:
    with said_of(index, entry.get("condition")):
        if "condition" not in entry:
            raise RequestError("it says no condition.")
        names = {option.name for option in find_condition(str(entry["condition"])).options}
        beside = {name: entry.pop(name) for name in names & set(entry)}
        options = entry.get("options", {})
        if beside and isinstance(options, Mapping):
            entry["options"] = {**options, **beside}
        if unknown := sorted(map(str, set(entry) - set(_KEYS))):
            known = ", ".join([*_KEYS, *sorted(names)])
            raise RequestError(f"unknown keys {short_repr(', '.join(unknown))}; known are {known}.")
    return entry


def from_settings(
    settings: Mapping[str, Any], opener: Opener
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Settings without `PICTURES` and ``further``; these as fields of a request; and what was odd about hints
    that were brought.

    Args:
        settings: of a request, from a stranger.
        opener: where the pictures are.

    Raises:
        RequestError, PictureError, ConditionError: what cannot be read, in one line.
    """
    rest, fields = dict(settings), dict[str, Any]()
    warnings: list[str] = []
    for name, read in PICTURES.items():
        if (named := rest.pop(name, None)) is not None:
            fields[name] = read(opener(named))
    if "further" in rest:
        further = []
        for index, entry in enumerate(entries_of(rest.pop("further"))):
            with said_of(index, entry["condition"]):
                control, said = _read(entry, opener)
            further.append(control)
            warnings += said
        fields["further"] = tuple(further)
    return rest, fields, warnings


def _read(entry: dict[str, Any], opener: Opener) -> tuple[FurtherControl, Sequence[str]]:
    pictures: dict[str, Any] = {}
    said: Sequence[str] = ()
    named = {kind: entry.pop(kind) for kind in FILES if entry.get(kind) is not None}
    settings = {key: value for key, value in entry.items() if key not in FILES}
    try:
        if "image" in named:
            pictures["input_image"] = read_picture(opener(named["image"]))
        if "hint" in named:
            report = read_hint(find_condition(entry["condition"])(), opener(named["hint"]))
            pictures["hint"], said = report.hint, report.warnings
        if "region" in named:
            pictures["region"] = read_region(opener(named["region"]))
    except PictureError as error:
        raise RequestError(str(error)) from error
    return FurtherControl(**settings, **pictures), said


def read_region(source: PictureSource) -> np.ndarray:
    """A picture that is white where a control acts: uint8 ``[H, W]``."""
    return read_picture(source).min(axis=2)


PICTURES |= {"region": read_region, "class_map": read_class_map, "source": read_picture, "mask": read_mask}


# ---- files ----


def located(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The same settings, the paths of `PICTURES` and ``further`` relative to a folder made paths from here.

    Raises:
        RequestError: no path where one is wanted, or as `entries_of`.
    """
    settings = dict(settings)
    for name in PICTURES:
        if settings.get(name) is not None:
            settings[name] = str(folder / _checked_path(name, settings[name]))
    if "further" in settings:
        settings["further"] = entries_of(settings["further"])
        for index, entry in enumerate(settings["further"]):
            with said_of(index, entry["condition"]):
                for kind in FILES:
                    if entry.get(kind) is not None:
                        entry[kind] = str(folder / _checked_path(kind, entry[kind]))
    return settings


def _checked_path(kind: str, path: Any) -> str:
    if not isinstance(path, str) or not path or "\0" in path:
        raise RequestError(f"{kind} must be the path of a file, got {short_repr(path)}.")
    return path


def files_of(settings: Mapping[str, Any]) -> dict[str, Path]:
    """The files that `located` settings read, by what they are."""
    files = {name: Path(settings[name]) for name in PICTURES if settings.get(name) is not None}
    for index, entry in enumerate(settings.get("further", ())):
        files |= {f"further {index + 1} {kind}": Path(entry[kind]) for kind in FILES if entry.get(kind)}
    return files


def without_files(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`located` settings without their paths, which say where a file is and not what is in it."""
    rest = {key: value for key, value in settings.items() if key not in PICTURES}
    if "further" in rest:
        rest["further"] = [
            {key: value for key, value in entry.items() if key not in FILES} for entry in rest["further"]
        ]
    return rest


def further_of_text(text: str) -> dict[str, Any]:
    """An entry from a command line: ``depth,hint=depth.png,strength=0.5,end=0.4``.

    Raises:
        RequestError: a part that is no ``name=value``.
    """
    condition, *parts = text.split(",")
    entry: dict[str, Any] = {"condition": condition.strip()}
    for part in parts:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name:
            raise RequestError(
                f"--further {text}: {part!r} is no name=value; write CONDITION,strength=0.5,hint=FILE "
                "or use a JSON-lines file."
            )
        entry[name] = value if name in (*FILES, "mode") else _number(name, value)
    return entries_of([entry])[0]


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RequestError(f"--further: {name} must be a number, got {short_repr(text)}.") from None


# ---- metadata ----


def packed(request: Request) -> dict[str, Any]:
    """What a picture's metadata say about further controls and `PICTURES`; nothing where there are none.

    Args:
        request: as carried out: every further control has its hint.
    """
    content: dict[str, Any] = {}
    for name in PICTURES:
        if (array := getattr(request, name)) is not None:
            content[name] = pack_source(array) if name == "source" else pack_hint(array)
    if request.further:
        content["further"] = [
            {
                **control.settings(),
                **({} if control.hint is None else {"hint": pack_hint(control.hint)}),
                **({} if control.region is None else {"region": pack_hint(control.region)}),
            }
            for control in request.further
        ]
    return content


def unpacked(content: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `packed` as fields of a request, for data that anyone may have written.

    Raises:
        RequestError: what cannot be read.
    """
    fields: dict[str, Any] = {
        name: (unpack_source if name == "source" else unpack_hint)(content[name])
        for name in PICTURES
        if content.get(name) is not None
    }
    if content.get("further"):
        further = []
        for index, entry in enumerate(entries_of(content["further"])):
            with said_of(index, entry["condition"]):
                arrays: Any = {kind: unpack_hint(entry[kind]) for kind in ("hint", "region") if kind in entry}
                given = {key: value for key, value in entry.items() if key not in FILES}
                further.append(FurtherControl(**given, **arrays))
        fields["further"] = tuple(further)
    return fields
