"""PNG files that carry the request that made them, so that a picture can be made again from itself."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, BinaryIO, cast

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from controlnet.generation.packing import unpack_hint
from controlnet.generation.request import Request, RequestError, request_from_settings
from controlnet.generation.several_files import unpacked
from ldm.weights import atomic_write

METADATA_KEY = "controlnet"
_MAX_METADATA = 48_000_000  # characters; Pillow reads 64 MiB of text at most
_CHUNK = 1_000_000  # characters of one text; Pillow refuses texts above 1 MiB


def metadata_text(
    request: Request,
    packed_hint: dict[str, Any],
    index: int,
    model: str,
    precision: str = "",
    packed_further: Mapping[str, Any] | None = None,
) -> str:
    """The text that a saved picture carries: one ASCII line of JSON.

    Args:
        request: as carried out, with a definite seed.
        packed_hint: the hint at the size of the picture, by ``pack_hint``. It takes the place of the input
            picture: with settings, source and mask it is all that the result depends on.
        index: which picture of the batch this is, from 0.
        model: name of the model.
        precision: what it was computed in, such as ``bf16``.
        packed_further: of ``several_files.packed``.
    """
    content = {
        "model": model,
        "precision": precision,
        "request": request.settings(),
        "index": index,
        "seed": request.seeds[index],
        "hint": packed_hint,
        **(packed_further or {}),
    }
    return json.dumps(content)


def to_pil(picture: np.ndarray, metadata: str | None = None) -> Image.Image:
    """uint8 RGB ``[H, W, 3]`` or grey ``[H, W]`` -> a Pillow picture whose ``info`` holds the metadata."""
    image = Image.fromarray(picture)
    if metadata is not None:
        image.info.update(_chunks(metadata))
    return image


def save_png(path: str | os.PathLike, picture: np.ndarray, metadata: str | None = None) -> None:
    """Write a picture atomically: the file appears whole or not at all.

    Args:
        path: the file, ending in ``.png``.
        picture: uint8 RGB ``[H, W, 3]`` or grey ``[H, W]``, in [0, 255].
        metadata: the text of ``metadata_text``, stored under the key ``controlnet``; a long one in several
            texts.
    """
    info = PngInfo()
    for key, text in _chunks(metadata or "").items():
        info.add_text(key, text, zip=True)
    with atomic_write(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", pnginfo=info)


def _chunks(metadata: str) -> dict[str, str]:
    """``controlnet``, ``controlnet.1`` and so on, so that every text is one that Pillow opens again."""
    pieces = [metadata[start : start + _CHUNK] for start in range(0, len(metadata), _CHUNK)]
    return {f"{METADATA_KEY}.{k}" if k else METADATA_KEY: piece for k, piece in enumerate(pieces)}


def read_metadata(path: str | os.PathLike | BinaryIO) -> dict[str, Any]:
    """The JSON object that a picture of ours carries: a file by its path, or open.

    Raises:
        RequestError: no PNG, no such text in it, or one that is damaged.
    """
    name = getattr(path, "name", path)
    try:
        with Image.open(path, formats=("PNG",)) as image:
            png = cast(PngImageFile, image)
            texts = png.text  # reads on to the end of the file, where text may also stand
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise RequestError(f"{name}: cannot be read as a PNG ({error}).") from error
    if METADATA_KEY not in texts:
        raise RequestError(f"{name}: carries no request; only PNG files saved by this project do.")
    text = texts[METADATA_KEY]
    for k in range(1, _MAX_METADATA // _CHUNK):
        if f"{METADATA_KEY}.{k}" not in texts:
            break
        text += texts[f"{METADATA_KEY}.{k}"]
    try:
        content = json.loads(text)
        if not isinstance(content, dict) or not isinstance(content.get("request"), dict):
            raise ValueError("no request in it")
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{name}: its request is damaged ({error}).") from error
    return content


def read_request(path: str | os.PathLike | BinaryIO) -> Request:
    """The request that made a picture: its settings with a definite seed, its hint in place of the input
    picture.

    Files of earlier versions, whose hint is called ``map``, are read too.

    Raises:
        RequestError: as ``read_metadata``, and for values that ``Request`` refuses.
    """
    content = read_metadata(path)
    return request_of(content)


def request_of(content: Mapping[str, Any]) -> Request:
    """The request that the JSON object of a picture tells.

    Raises:
        RequestError: values that ``Request`` refuses.
    """
    hint = unpack_hint(content.get("hint", content.get("map")))
    return request_from_settings(content["request"], hint=hint, **unpacked(content))
