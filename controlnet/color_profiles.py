"""Colours as their file means them: pictures with an ICC profile, turned into sRGB."""

from __future__ import annotations

import io
import logging

import numpy as np
from PIL import Image, ImageCms

logger = logging.getLogger(__name__)

MOST_BYTES = 4 * 2**20
"""Larger profiles are not used; those of cameras have a few kilobytes, those of presses two megabytes."""

_SAME = 2  # levels: a profile that changes no colour by more is sRGB's own, rounded in another way


def to_srgb(picture: Image.Image, profile: bytes, name: str) -> Image.Image:
    """Turn the colours of a profile into those of sRGB.

    Args:
        picture: of 8 bits a channel, or 1.
        profile: the ICC profile of its file.
        name: of the file, for the log.

    Returns:
        An RGB or RGBA picture; the picture itself where the profile is sRGB's, is of another kind than the
        picture, or cannot be used (the log then says so).
    """
    try:
        if len(profile) > MOST_BYTES:
            raise ValueError(f"it has {len(profile):,} bytes")
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return _convert(picture, source, source.profile.xcolor_space.strip())
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, ImportError) as error:
        logger.warning("%s: its colour profile cannot be used (%s); colours are read as sRGB.", name, error)
        return picture


def _convert(picture: Image.Image, source: ImageCms.ImageCmsProfile, space: str) -> Image.Image:
    transparency = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
    if space == "RGB":
        colors = picture if picture.mode == "RGB" else picture.convert("RGB")
        probe = _every_sixteenth_color()
    elif space == "GRAY" and picture.mode in ("1", "L", "LA"):
        colors, probe = picture.convert("L"), Image.linear_gradient("L")
    elif space == "CMYK" and picture.mode == "CMYK":
        colors, probe = picture, None
    else:
        return picture
    target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    transform = ImageCms.ImageCmsTransform(source, target, colors.mode, "RGB", ImageCms.Intent.PERCEPTUAL)
    if probe is not None:
        before, after = (
            np.asarray(image.convert("RGB"), np.int16) for image in (probe, transform.apply(probe))
        )
        if np.abs(after - before).max() <= _SAME:
            return picture
    converted = transform.apply(colors)
    if transparency is not None:
        converted.putalpha(transparency)
    return converted


def _every_sixteenth_color() -> Image.Image:
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(18, -1, 3))
