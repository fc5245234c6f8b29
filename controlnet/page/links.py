"""Settings in the page's address, so that a link repeats a picture.

They stand behind the ``#``, which browsers keep to themselves: no server log sees a prompt.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

import numpy as np

from controlnet.conditions import DEFAULT
from controlnet.generation.packing import array_hash, unpack_hint
from controlnet.generation.request import Request, RequestError, request_from_settings, setting_type
from controlnet.generation.several_files import PICTURES, unpacked

_MAX_HINT_TEXT = 60_000  # browsers carry more, but not every place that a link is pasted into does
_MAX_FRAGMENT = 200_000
NO_SOURCE = np.zeros((1, 1, 3), np.uint8)
"""Stands for the source of a link's picture."""

_DEFAULTS = {
    field.name: {} if field.default is dataclasses.MISSING else field.default
    for field in dataclasses.fields(Request)
    if field.name != "options"
}


def link_fragment(
    request: Request,
    packed_hint: Mapping[str, Any],
    model: str = "",
    packed_further: Mapping[str, Any] | None = None,
) -> str:
    """What follows the ``#``: every setting that differs from its default, the name of the model, and the
    hints and regions where they are not too large together. A source picture is told by its hash alone.
    """
    settings = request.settings()
    options = settings.pop("options")
    settings = {name: value for name, value in settings.items() if value != _DEFAULTS[name]}
    fields = {
        name: value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()
    }
    if options:
        fields["options"] = json.dumps(options)
    if model:
        fields["model"] = model
    beside: dict[str, Any] = {
        name: json.dumps(value)
        for name, value in (packed_further or {}).items()
        if name not in ("source", "mask")
    }
    if request.source is not None:
        fields["source"] = array_hash(request.source)
    if len(packed_hint["labels"]) + sum(map(len, beside.values())) > _MAX_HINT_TEXT:
        if request.condition != DEFAULT:
            fields.pop("class_prompts", None)  # without the map that they are about
    else:
        fields |= beside
        size = [packed_hint["width"], packed_hint["height"], packed_hint.get("channels")]
        fields["hint"] = f"{'x'.join(str(side) for side in size if side)}.{packed_hint['labels']}"
    return urlencode(fields)


def read_fragment(fragment: str) -> tuple[Request, np.ndarray | None, str]:
    """The request, its hint (or None, where something else stands in) and the model (or nothing) of a link;
    nothing in it is trusted.

    Links of earlier versions, whose hint is called ``map`` and which name no model, are read too.

    Raises:
        RequestError: unknown or impossible values.
    """
    if len(fragment) > _MAX_FRAGMENT:
        raise RequestError(f"This link has {len(fragment)} characters; those of this page are shorter.")
    try:
        fields = dict(parse_qsl(fragment.lstrip("#"), keep_blank_values=True, max_num_fields=64))
    except ValueError as error:
        raise RequestError(f"This link cannot be read ({error}).") from error
    source = {"source": NO_SOURCE} if fields.pop("source", None) else {}
    model = fields.pop("model", "")
    text = fields.pop("hint", fields.pop("map", None))
    hint = None if text is None else _hint_of(text)
    beside = {name: _object(name, fields.pop(name)) for name in (*PICTURES, "further") if name in fields}
    settings = {name: _typed(name, value) for name, value in fields.items()}
    settings.setdefault("prompt", "")
    standing_in = np.zeros((64, 64, 3), np.uint8)  # further controls without a hint have the page's picture
    return request_from_settings(settings, standing_in, hint, **source, **unpacked(beside)), hint, model


def misses_source(request: Request) -> bool:
    """Whether a request is that of a link whose picture began from a source, which links do not carry."""
    return request.source is not None and request.source.shape[:2] == NO_SOURCE.shape[:2]


def _object(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RequestError(f"This link says {name}={text[:80]}, which cannot be read.") from None


def _hint_of(text: str) -> np.ndarray:
    size, _, packed = text.partition(".")
    width, height, channels, *_ = [*size.split("x"), "1", "1", "1"]
    return unpack_hint({"width": width, "height": height, "channels": channels, "labels": packed})


def _typed(name: str, text: str) -> Any:
    try:
        kind = setting_type(name) if name in (*_DEFAULTS, "options") else str
        return text if kind is str else json.loads(text)
    except (ValueError, RecursionError):
        raise RequestError(f"This link says {name}={text[:80]}, which cannot be read.") from None
