"""Reading the pictures that people bring: the right array or a one-line error, never a silently wrong one."""

from __future__ import annotations

import io
import logging
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from annotator.util import HWC3, MAX_PIXELS
from controlnet.color_profiles import to_srgb
from controlnet.files import open_regular

logger = logging.getLogger(__name__)

# Only raster formats whose decoders run no other program; EPS, for one, would start Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF")
INDEX_FORMATS = ("PNG", "TIFF", "GIF", "BMP")
SUFFIXES = frozenset(
    [
        ".png",
        ".jpg",
        ".jpeg",
        ".jfif",
        ".webp",
        ".gif",
        ".tif",
        ".tiff",
        ".bmp",
        ".ppm",
        ".pgm",
        ".pbm",
        ".jp2",
        ".avif",
    ]
)
"""By which the pictures of a folder are known."""

# Grey files of fewer than 8 bits arrive stretched to [0, 255]; these factors undo it where the values are
# indices.
_STRETCH = {"L;2": 85, "L;4": 17}
_TIFF_PHOTOMETRIC = 262
_MOST_PNG_BYTES = 512 * 2**20


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
    transparency is laid over white), colour profiles and EXIF rotation are applied, and of an animation the
    first frame is taken.

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
        image = self._of_eight_bits()
        if profile := image.info.get("icc_profile"):
            image = to_srgb(image, profile, self.name)
        if not image.has_transparency_data:
            return np.array(self._converted(image, "RGB"))
        rgba = np.asarray(self._converted(image, "RGBA"))
        # Piece by piece, because the arithmetic takes 32 bytes a pixel.
        return np.concatenate([HWC3(rgba[top : top + 256]) for top in range(0, len(rgba), 256)])

    def stored_colors(self) -> np.ndarray:
        """uint8 ``[H, W, 3]``: the numbers of the file, for maps, whose colours are names: no profile is
        applied, and transparency is left out; see ``transparent``.
        """
        image = self._of_eight_bits()
        mode = "RGBA" if image.has_transparency_data else "RGB"
        return np.array(self._converted(image, mode))[:, :, :3]

    def transparent(self) -> np.ndarray | None:
        """bool ``[H, W]``: the pixels that do not show at all. None where there are none."""
        if not self.pixels.has_transparency_data or self.mode.startswith("I"):
            return None
        mask = np.asarray(self.pixels.convert("RGBA"))[:, :, 3] == 0
        return mask if mask.any() else None

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

    def _of_eight_bits(self) -> Image.Image:
        """The pixels with at most 8 bits a channel, and with the colour profile of the file."""
        if self.mode == "I" and self.format == "PPM":  # Pillow stretches deep PGM files to 16 bits
            return Image.fromarray((np.asarray(self.pixels) >> 8).astype(np.uint8))
        if self.mode in ("I", "F"):
            reason = "pixels of 32 bits have no fixed range; save the picture with 8 or 16 bits per channel"
            raise PictureError(self.name, reason)
        if not self.mode.startswith("I;16"):
            return self.pixels
        grey = Image.fromarray(self._high_byte())
        grey.info["icc_profile"] = self.pixels.info.get("icc_profile")
        return grey

    def _converted(self, image: Image.Image, mode: str) -> Image.Image:
        try:
            return image.convert(mode)
        except ValueError as error:
            raise PictureError(self.name, f"cannot be converted to RGB ({error})") from error

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


EncodedPicture = str | os.PathLike | bytes | BinaryIO
PictureSource = EncodedPicture | Picture
"""A path, a file's bytes, an open binary file, or a picture that is decoded already."""


def decode(source: PictureSource, most_pixels: int = MAX_PIXELS) -> Picture:
    """Decode the first frame, its size checked before, turned upright by its EXIF orientation.

    Args:
        source: a picture that is decoded already stays as it is.
        most_pixels: larger ones are refused.

    Raises:
        PictureError: whatever is wrong with the file.
    """
    if isinstance(source, Picture):
        return source
    name = _name_of(source)
    try:
        with _open(source) as file:
            try:
                return _decode(file, name, most_pixels)
            except PictureError:
                raise
            except Exception:
                plain = _without_text(file)
                if plain is None:
                    raise
                return _decode(plain, name, most_pixels)
    except PictureError:
        raise
    except FileNotFoundError:
        raise PictureError(name, "no such file") from None
    except Image.UnidentifiedImageError:
        raise PictureError(name, _why_unidentified(source)) from None
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        raise PictureError(name, f"cannot be read as a picture ({error or type(error).__name__})") from error


def _open(source: EncodedPicture) -> AbstractContextManager[BinaryIO]:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    return open_regular(source) if isinstance(source, str | os.PathLike) else nullcontext(source)


def _decode(file: BinaryIO, name: str, most_pixels: int) -> Picture:
    with Image.open(file, formats=FORMATS) as picture:
        width, height = picture.size
        if width * height > most_pixels:
            limit = most_pixels // 1_000_000
            reason = f"{width}x{height} pixels are more than the {limit} megapixels allowed; make it smaller"
            raise PictureError(name, reason)
        raw_mode = _raw_mode(picture)
        white_is_zero = getattr(picture, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == 0
        picture.load()
        try:
            upright = ImageOps.exif_transpose(picture)
        except Exception as error:
            logger.warning("%s: its EXIF data cannot be read (%s): it may lie on its side.", name, error)
            upright = picture.copy()
        return Picture(upright, name, picture.format or "", raw_mode, white_is_zero)


def _without_text(file: BinaryIO) -> BinaryIO | None:
    """A PNG without its texts, which Pillow refuses where they are long or damaged; None for other files."""
    file.seek(0)
    kept = io.BytesIO()
    kept.write(file.read(8))
    if kept.getvalue() != b"\x89PNG\r\n\x1a\n":
        return None
    while len(start := file.read(8)) == 8 and kept.tell() < _MOST_PNG_BYTES:
        length, kind = int.from_bytes(start[:4], "big"), start[4:]
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            file.seek(length + 4, io.SEEK_CUR)
        else:
            kept.write(start + file.read(length + 4))
    kept.seek(0)
    return kept


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


def _why_unidentified(source: EncodedPicture) -> str:
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
