"""Settings in the page's address, so that a link repeats a picture.

They stand behind the ``#``, which browsers keep to themselves: no server log sees a prompt.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any
from urllib.parse import parse_qsl, urlencode

import numpy as np

from controlnet.generation.request import Request, RequestError, pack_map, request_from_settings, unpack_map

_MAX_MAP_TEXT = 60_000  # browsers carry more, but not every place that a link is pasted into does
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Request)}


def link_fragment(request: Request, labels: np.ndarray) -> str:
    """What follows the ``#``: every setting that differs from its default, and the map where it is not too
    large.
    """
    settings = {name: value for name, value in request.settings().items() if value != _DEFAULTS[name]}
    fields = {
        name: value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()
    }
    packed = pack_map(labels)
    if len(packed["labels"]) <= _MAX_MAP_TEXT:
        fields["map"] = f"{packed['width']}x{packed['height']}.{packed['labels']}"
    return urlencode(fields)


def read_fragment(fragment: str) -> tuple[dict[str, Any], np.ndarray | None]:
    """The settings and the map (uint8 ``[H, W]`` or None) of a link; nothing in it is trusted.

    Raises:
        RequestError: unknown or impossible values.
    """
    try:
        fields = dict(parse_qsl(fragment.lstrip("#"), keep_blank_values=True, max_num_fields=32))
    except ValueError as error:
        raise RequestError(f"This link cannot be read ({error}).") from error
    map_text = fields.pop("map", None)
    labels = None
    if map_text is not None:
        size, _, packed = map_text.partition(".")
        width, _, height = size.partition("x")
        labels = unpack_map({"width": width, "height": height, "labels": packed})
    settings = {name: _typed(name, text) for name, text in fields.items()}
    settings.setdefault("prompt", "")
    checked = request_from_settings(
        settings, map=labels if labels is not None else np.zeros((64, 64), np.uint8)
    )
    return checked.settings(), labels


def _typed(name: str, text: str) -> Any:
    if isinstance(_DEFAULTS.get(name), int | float):  # bool is an int
        try:
            return json.loads(text)
        except ValueError:
            raise RequestError(f"This link says {name}={text}, which is no number.") from None
    return text
