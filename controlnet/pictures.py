"""Reading the pictures that people bring: the right array or a one-line error, never a silently wrong one."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from annotator.util import HWC3, MAX_PIXELS

PictureSource = str | os.PathLike | bytes | BinaryIO

# Only raster formats whose decoders run no other program; EPS, for one, would start Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF")
INDEX_FORMATS = ("PNG", "TIFF", "GIF", "BMP")

# Grey files of fewer than 8 bits arrive stretched to [0, 255]; these factors undo it where the values are
# indices.
_STRETCH = {"L;2": 85, "L;4": 17}
_TIFF_PHOTOMETRIC = 262


class PictureError(ValueError):
    """A file that cannot be read as a picture. The text is one line, ``name: reason``; both parts are
    attributes.
    """

    def __init__(self, name: str, reason: str):
        self.name = name
        self.reason = " ".join(reason.split())
        super().__init__(f"{self.name}: {self.reason}")


def read_picture(source: PictureSource) -> np.ndarray:
    """Read any common picture as 8-bit RGB.

    1-bit, grey, palette, 16-bit, CMYK and transparent pictures are converted (16 bits keep their high byte,
    transparency is laid over white), EXIF rotation is applied, and of an animation the first frame is taken.

    Args:
        source: a path, a file's bytes, or an open binary file.

    Returns:
        uint8 ``[H, W, 3]``, RGB, in [0, 255].

    Raises:
        PictureError: no file, no picture, a truncated one, more than 32 megapixels, or pixels without a fixed
            range (32-bit integers and floats).
    """
    return decode(source).rgb()


def read_index_map(source: PictureSource) -> np.ndarray:
    """Read a map whose pixel values are class indices, without any conversion of colours.

    Args:
        source: a path, a file's bytes, or an open binary file; a grey picture or one with a palette, of at
            most 8 bits, or of 16 bits with values below 256.

    Returns:
        uint8 ``[H, W]``: the stored numbers. A palette's colours are ignored.

    Raises:
        PictureError: as in ``read_picture``, and for colour pictures, lossy formats and values above 255.
    """
    return decode(source).indices()


@dataclass(frozen=True)
class Picture:
    """A picture in memory, upright, with what its file said about it. See ``decode``."""

    pixels: Image.Image
    name: str
    format: str
    raw_mode: str
    white_is_zero: bool

    @property
    def mode(self) -> str:
        """Pillow's word for the kind of pixels: "L" grey, "P" palette, "RGB" and so on."""
        return self.pixels.mode

    def rgb(self) -> np.ndarray:
        """uint8 ``[H, W, 3]``; see ``read_picture``."""
        if self.mode == "I" and self.format == "PPM":
            return HWC3(
                (np.asarray(self.pixels) >> 8).astype(np.uint8)
            )  # Pillow stretches deep PGM files to 16 bits
        if self.mode in ("I", "F"):
            reason = "pixels of 32 bits have no fixed range; save the picture with 8 or 16 bits per channel"
            raise PictureError(self.name, reason)
        if self.mode.startswith("I;16"):
            return HWC3(self._high_byte())
        try:
            if self.pixels.has_transparency_data:
                return HWC3(np.asarray(self.pixels.convert("RGBA")))
            return np.array(self.pixels.convert("RGB"))
        except ValueError as error:
            raise PictureError(self.name, f"cannot be converted to RGB ({error})") from error

    def indices(self) -> np.ndarray:
        """uint8 ``[H, W]``; see ``read_index_map``."""
        if self.format not in INDEX_FORMATS:
            reason = (
                f"an index map must be stored exactly, as {', '.join(INDEX_FORMATS)}; this is {self.format}"
            )
            raise PictureError(self.name, reason)
        if self.mode not in ("1", "L", "P") and not self.mode.startswith("I;16"):
            raise PictureError(
                self.name, f"an index map has one channel of at most 16 bits, this is {self.mode}"
            )
        if self.white_is_zero:
            raise PictureError(self.name, "an index map must not be inverted (TIFF with white as zero)")
        indices = np.asarray(self.pixels).astype(np.int32) // _STRETCH.get(self.raw_mode, 1)
        if indices.max() > 255:
            raise PictureError(
                self.name, f"an index map holds values up to 255, this one goes up to {indices.max()}"
            )
        return indices.astype(np.uint8)

    def _high_byte(self) -> np.ndarray:
        """The 8 most significant bits of a grey picture of 12 or 16 bits, as Pillow itself takes them of
        16-bit RGB.
        """
        values = np.asarray(self.pixels)
        grey = (values >> (4 if self.raw_mode == "I;12" else 8)).astype(np.uint8)
        if self.white_is_zero:  # Pillow inverts the other grey modes itself
            grey = 255 - grey
        transparent = self.pixels.info.get("transparency")
        if transparent is not None:
            grey = np.where(values == transparent, np.uint8(255), grey)
        return grey


def decode(source: PictureSource) -> Picture:
    """Decode the first frame, its size checked before, turned upright by its EXIF orientation.

    Raises:
        PictureError: whatever is wrong with the file.
    """
    name = _name_of(source)
    try:
        with Image.open(
            io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS
        ) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                limit = MAX_PIXELS // 1_000_000
                raise PictureError(
                    name, f"{width}x{height} pixels are more than the {limit} megapixels allowed"
                )
            raw_mode = _raw_mode(picture)
            white_is_zero = getattr(picture, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == 0
            picture.load()
            upright = ImageOps.exif_transpose(picture)
            return Picture(upright, name, picture.format or "", raw_mode, white_is_zero)
    except PictureError:
        raise
    except FileNotFoundError:
        raise PictureError(name, "no such file") from None
    except Image.UnidentifiedImageError:
        raise PictureError(name, _why_unidentified(source)) from None
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        raise PictureError(name, f"cannot be read as a picture ({error or type(error).__name__})") from error


def _name_of(source: PictureSource) -> str:
    if isinstance(source, bytes):
        return "picture"
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    return str(getattr(source, "name", "picture"))


def _raw_mode(picture: Image.Image) -> str:
    """How the file packs its pixels, in Pillow's words: "L;4", "I;12" and so on. Gone once the picture is
    loaded.
    """
    tiles = getattr(picture, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _why_unidentified(source: PictureSource) -> str:
    """What a file is that starts like no picture."""
    if isinstance(source, bytes):
        start = source[:64]
    elif isinstance(source, str | os.PathLike):
        with Path(source).open("rb") as file:
            start = file.read(64)
    else:
        source.seek(0)
        start = source.read(64)
    if not start:
        return "the file is empty"
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "not a picture but a web page; download the picture itself"
    return f"not a picture in a known format (known are {', '.join(FORMATS)}), or damaged at its start"
