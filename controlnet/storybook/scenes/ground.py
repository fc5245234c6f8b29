"""Meadows, fields, beaches, roads, and water that mirrors what stands behind it."""

from __future__ import annotations

import cv2
import numpy as np

from controlnet.storybook.scenes.canvas import Canvas, glow
from controlnet.storybook.scenes.labels import Label
from controlnet.storybook.scenes.layout import Thing
from controlnet.storybook.scenes.looks import COVER, GRASS, Look, mix, scaled

WHITE = (240, 245, 252)


def paint_grass(canvas: Canvas, thing: Thing, look: Look) -> None:
    """The meadow: hazy far away, deeper and with tufts towards us."""
    grass = GRASS[look.season]
    far, near = look.lit(scaled(grass, 1.04), 0.75), look.lit(scaled(grass, 0.92), 0.0)
    canvas.shade(thing.outline, far, near, Label.GRASS, grain=0.9)
    top = float(thing.outline[:, 1].min())
    rng = np.random.default_rng(int(thing.form[0] * 2**31))
    foot = rng.random((34, 2)) ** (1.0, 0.8) * (1, 1 - top) + (0, top)
    reach = 0.006 + 0.022 * (foot[:, 1:] - top)
    lean = reach * 0.4
    blades = np.stack(
        [foot - np.concatenate([lean, reach], 1), foot, foot + np.concatenate([lean, -reach], 1)], 1
    )
    shade = scaled(grass, 0.86) if not look.is_winter else (206, 216, 234)
    canvas.lines(list(blades), look.lit(shade, 0.15), 0.004)


def paint_sand(canvas: Canvas, thing: Thing, look: Look) -> None:
    """A beach."""
    sand = (242, 216, 160) if not look.is_winter else (232, 220, 192)
    canvas.shade(thing.outline, look.lit(sand, 0.3), look.lit(scaled(sand, 0.93), 0.0), Label.SAND, grain=0.6)


def paint_earth(canvas: Canvas, thing: Thing, look: Look) -> None:
    """Bare soil with a few stones."""
    soil = (146, 100, 68) if not look.is_winter else (150, 118, 98)
    canvas.shade(
        thing.outline, look.lit(scaled(soil, 1.12), 0.3), look.lit(soil, 0.0), Label.EARTH, grain=1.0
    )
    middle = thing.outline.mean(0)
    stones = middle + (thing.outline[::5] - middle) * (0.3 + 0.45 * thing.form[:8, None])
    canvas.dots(stones, look.lit(scaled(soil, 0.74)), 0.008)


def paint_field(canvas: Canvas, thing: Thing, look: Look) -> None:
    """A field whose furrows run to the middle of the horizon."""
    crop = {
        "spring": (124, 172, 70),
        "summer": (238, 200, 84),
        "autumn": (176, 124, 66),
        "winter": (226, 230, 238),
    }
    furrow = {
        "spring": (150, 122, 74),
        "summer": (208, 158, 58),
        "autumn": (140, 94, 54),
        "winter": (174, 160, 156),
    }
    depth = thing.depth * 0.8
    top, bottom = look.lit(crop[look.season], depth), look.lit(crop[look.season], max(0.0, depth - 0.25))
    canvas.shade(thing.outline, top, bottom, Label.FIELD, grain=0.4)
    far_left, far_right, near_right, near_left = thing.outline
    lines = 6
    share = (np.arange(lines)[:, None] + 0.5) / lines
    starts, ends = far_left + (far_right - far_left) * share, near_left + (near_right - near_left) * share
    half = (near_right - near_left) / lines * 0.22
    thin = (far_right - far_left) / lines * 0.22
    colour = look.lit(furrow[look.season], depth)
    for start, end in zip(starts, ends, strict=True):
        canvas.fill(np.array([start - thin, start + thin, end + half, end - half]), colour)


def paint_flowers(canvas: Canvas, thing: Thing, look: Look) -> None:
    """A flower bed: a patch of leaves under dabs of two colours."""
    leaf = mix(GRASS[look.season], (60, 120, 70), 0.45) if not look.is_winter else (206, 214, 230)
    canvas.shade(
        thing.outline, look.lit(leaf, 0.2), look.lit(scaled(leaf, 0.85), 0.0), Label.FLOWER, grain=0.5
    )
    pairs = (
        ((240, 96, 132), (255, 226, 120)),
        ((156, 104, 214), (250, 168, 204)),
        ((234, 70, 62), (255, 190, 70)),
        ((250, 246, 236), (240, 120, 170)),
    )
    first, second = pairs[int(thing.form[0] * 4)]
    if look.is_winter:
        first, second = mix(first, WHITE, 0.45), mix(second, WHITE, 0.6)
    rng = np.random.default_rng(int(thing.form[1] * 2**31))
    middle = thing.outline.mean(0)
    rim = thing.outline[rng.integers(0, len(thing.outline), 34)]
    spots = middle + (rim - middle) * rng.random((34, 1)) ** 0.5 * 0.86
    spots = spots[np.argsort(spots[:, 1])]
    radius = 0.009 + 0.009 * (1 - thing.depth)
    canvas.dots(spots[::2], look.lit(first, 0.1), radius)
    canvas.dots(spots[1::2], look.lit(second, 0.1), radius)


def paint_path(canvas: Canvas, thing: Thing, look: Look) -> None:
    """A trodden path of light gravel."""
    gravel = (222, 196, 156) if not look.is_winter else (206, 206, 214)
    _ribbon(canvas, thing, look, gravel, Label.PATH)


def paint_road_away(canvas: Canvas, thing: Thing, look: Look) -> None:
    """A road to the horizon, with a dashed line."""
    asphalt = (128, 130, 142)
    _ribbon(canvas, thing, look, asphalt, Label.ROAD)
    half = len(thing.outline) // 2
    left, right = thing.outline[:half], thing.outline[half:][::-1]
    middle, width = (left + right) / 2, (right - left)[:, :1] * np.array([0.022, 0.0])
    for start in range(2, half - 1, 3):
        pair = slice(start, start + 2)
        dash = np.concatenate([(middle - width)[pair], (middle + width)[pair][::-1]])
        canvas.fill(dash, look.lit((246, 240, 222), 0.1))


def paint_road(canvas: Canvas, thing: Thing, look: Look) -> None:
    """A road across the picture."""
    asphalt = (128, 130, 142)
    _ribbon(canvas, thing, look, asphalt, Label.ROAD)
    half = len(thing.outline) // 2
    top, bottom = thing.outline[:half], thing.outline[half:][::-1]
    middle = (top + bottom) / 2
    dashes = [middle[start : start + 2] for start in range(0, half - 1, 2)]
    canvas.lines(dashes, look.lit((246, 240, 222), 0.1), 0.010)


def _ribbon(canvas: Canvas, thing: Thing, look: Look, colour: tuple[int, int, int], label: Label) -> None:
    far, near = look.lit(scaled(colour, 1.06), 0.55), look.lit(scaled(colour, 0.94), 0.0)
    canvas.shade(thing.outline, far, near, label, grain=0.5)


def paint_sea(canvas: Canvas, thing: Thing, look: Look) -> None:
    """The open sea with foam at its shore."""
    _water(canvas, thing, look, (34, 116, 184), Label.SEA, mirror=0.30)
    half = len(thing.outline) // 2
    shore = thing.outline[half:]
    canvas.lines([shore - (0, 0.009)], look.lit((244, 250, 250), 0.1), 0.011)
    canvas.lines([shore - (0, 0.030)], look.lit((150, 206, 224), 0.1), 0.006)


def paint_lake(canvas: Canvas, thing: Thing, look: Look) -> None:
    """A still lake."""
    _water(canvas, thing, look, (66, 160, 190), Label.LAKE, mirror=0.55)


def paint_river(canvas: Canvas, thing: Thing, look: Look) -> None:
    """A river, lighter than a lake, with its current drawn along its banks."""
    _water(canvas, thing, look, (98, 184, 216), Label.RIVER, mirror=0.25)
    half = len(thing.outline) // 2
    left, right = thing.outline[:half], thing.outline[half:][::-1]
    streams = [left + (right - left) * share for share in (0.2, 0.45, 0.72)]
    dashes = [
        s[k : k + 4] for s, start in zip(streams, (6, 9, 7), strict=True) for k in range(start, half - 2, 7)
    ]
    canvas.lines(dashes, look.lit((206, 236, 244), 0.15), 0.006)


def _water(
    canvas: Canvas, thing: Thing, look: Look, colour: tuple[int, int, int], label: Label, mirror: float
) -> None:
    """Water takes its colour from the sky, mirrors what is painted above it, and glitters under the sun."""
    top, _, bottom = look.sky
    far = mix(look.lit(colour, 0.3), bottom, 0.50)
    near = mix(look.lit(scaled(colour, 0.92)), top, 0.45 if look.time == "sunset" else 0.28)
    coverage, window = canvas.shade(thing.outline, far, near, label)
    rows, columns = window
    height = min(rows.stop - rows.start, rows.start)
    if height > 4:
        above = cv2.blur(canvas.picture[rows.start - height : rows.start, columns][::-1], (5, 7))
        fade = np.linspace(mirror, mirror * 0.25, height)[:, None]
        share = (coverage[:height] * fade).astype(np.int16)
        canvas.blend(share, (slice(rows.start, rows.start + height), columns), above.astype(np.int16))
    _glitter(canvas, thing, look, coverage, window)


def _glitter(
    canvas: Canvas, thing: Thing, look: Look, coverage: np.ndarray, window: tuple[slice, slice]
) -> None:
    """Short level strokes, light on dark; a bright lane of them below an open sun or moon."""
    rng = np.random.default_rng(int(thing.form[0] * 2**31))
    size = canvas.size
    columns = window[1]
    layer = np.zeros_like(coverage, dtype=np.uint8)
    high, wide = layer.shape
    if high < 4 or wide < 4:
        return
    spots = rng.random((44, 2))
    spots[:, 1] **= 0.8
    lane = int((look.sun_x * size) - columns.start)
    open_sky = COVER[look.weather] < 0.5
    for k, (u, v) in enumerate(spots.tolist()):
        y = int(v * high)
        reach = size * (0.008 + 0.030 * v)
        if k < 20:
            x, tone = int(u * wide), 46
        elif open_sky:
            x, tone = int(lane + (u - 0.5) * size * (0.05 + 0.12 * v)), 104
        else:
            break
        cv2.line(layer, (int(x - reach), y), (int(x + reach), y), tone, 1 if size < 200 else 2, cv2.LINE_AA)
    shine = {"day": (255, 255, 255), "sunset": (255, 226, 160), "night": (206, 216, 248)}[look.time]
    canvas.blend((layer.astype(np.int16) * coverage) >> 7, window, shine)


def paint_shadow(canvas: Canvas, thing: Thing, look: Look, breadth: float) -> None:
    """A soft shadow at the foot of a thing, drawn out away from the light."""
    half = breadth / 2
    shift = -look.side(thing.x) * half * 0.5
    left, right = thing.x - half * 1.25 + shift, thing.x + half * 1.25 + shift
    tone = {"day": (40, 52, 70), "sunset": (70, 40, 64), "night": (8, 12, 34)}[look.time]
    strength = 0.62 if COVER[look.weather] < 0.5 else 0.38
    canvas.soft(
        glow(), (left, thing.y - thing.size * 0.09, right, thing.y + thing.size * 0.09), tone, strength
    )
