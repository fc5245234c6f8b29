"""PNG files that carry the request that made them, so that a picture can be made again from itself."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from controlnet.generation.request import Request, RequestError, pack_map, request_from_settings, unpack_map
from ldm.weights import atomic_write

METADATA_KEY = "controlnet"
_MAX_METADATA = 8_000_000  # characters; a map of 32 megapixels compresses to less


def metadata_text(request: Request, labels: np.ndarray, index: int, model: str) -> str:
    """The text that a saved picture carries: one ASCII line of JSON.

    Args:
        request: as carried out, with a definite seed.
        labels: uint8 ``[H, W]``, the map at the size of the picture. It takes the place of the input picture:
            settings and map are all that the result depends on.
        index: which picture of the batch this is, from 0.
        model: name of the model.
    """
    content = {
        "model": model,
        "request": request.settings(),
        "index": index,
        "seed": request.seeds[index],
        "map": pack_map(labels),
    }
    return json.dumps(content)


def to_pil(picture: np.ndarray, metadata: str | None = None) -> Image.Image:
    """uint8 RGB ``[H, W, 3]`` or grey ``[H, W]`` -> a Pillow picture whose ``info`` holds the metadata."""
    image = Image.fromarray(picture)
    if metadata is not None:
        image.info[METADATA_KEY] = metadata
    return image


def save_png(path: str | os.PathLike, picture: np.ndarray, metadata: str | None = None) -> None:
    """Write a picture atomically: the file appears whole or not at all.

    Args:
        path: the file, ending in ``.png``.
        picture: uint8 RGB ``[H, W, 3]`` or grey ``[H, W]``, in [0, 255].
        metadata: the text of ``metadata_text``, stored under the key ``controlnet``.
    """
    info = PngInfo()
    if metadata is not None:
        info.add_text(METADATA_KEY, metadata, zip=True)
    with atomic_write(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", pnginfo=info)


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """The JSON object that a picture of ours carries.

    Raises:
        RequestError: no PNG, no such text in it, or one that is damaged.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            text = image.text.get(METADATA_KEY)  # reads on to the end of the file, where text may also stand
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise RequestError(f"{path}: cannot be read as a PNG ({error}).") from error
    if text is None:
        raise RequestError(f"{path}: carries no request; only PNG files saved by this project do.")
    try:
        content = json.loads(text[:_MAX_METADATA])
        if not isinstance(content, dict) or not isinstance(content.get("request"), dict):
            raise ValueError("no request in it")
    except ValueError as error:
        raise RequestError(f"{path}: its request is damaged ({error}).") from error
    return content


def read_request(path: str | os.PathLike) -> Request:
    """The request that made a picture: its settings with a definite seed, its map in the place of the input
    picture.

    Raises:
        RequestError: as ``read_metadata``, and for values that ``Request`` refuses.
    """
    content = read_metadata(path)
    return request_from_settings(content["request"], map=unpack_map(content.get("map")))
