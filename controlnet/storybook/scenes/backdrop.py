"""Sky, mountains, hills and weather."""

from __future__ import annotations

import cv2
import numpy as np

from controlnet.storybook.scenes.canvas import Canvas, clouds, glow
from controlnet.storybook.scenes.labels import Label
from controlnet.storybook.scenes.layout import Thing
from controlnet.storybook.scenes.looks import COVER, GRASS, Look, mix, scaled

ROCK = {
    "spring": (132, 140, 160),
    "summer": (124, 134, 158),
    "autumn": (140, 128, 140),
    "winter": (136, 148, 174),
}
SNOW = (244, 248, 255)


def paint_sky(canvas: Canvas, look: Look) -> None:
    """Fill the whole picture with sky: gradient, stars, sun or moon, clouds."""
    rng = np.random.default_rng(look.seed)
    size = canvas.size
    stops = np.array(look.sky, np.float32)
    rows = np.linspace(0, 1, size, dtype=np.float32) / 0.5
    gradient = np.stack([np.interp(rows, (0, 0.5, 1), stops[:, band]) for band in range(3)], 1)
    canvas.picture[:] = cv2.repeat(gradient.astype(np.uint8)[:, None], 1, size)
    canvas.marks[:] = Label.SKY
    covered = COVER[look.weather] > 0.5
    if look.is_night and not covered:
        stars = rng.uniform((0, 0), (1, 0.36), (26, 2))
        canvas.dots(stars[:18], (150, 166, 210), 0.0042)
        canvas.dots(stars[18:], (250, 246, 226), 0.0058)
    _paint_sun(canvas, look, covered)
    for _ in range(7 if covered else int(rng.integers(2, 5))):
        _paint_cloud(canvas, look, rng, covered)


def _paint_sun(canvas: Canvas, look: Look, covered: bool) -> None:
    x, y = look.sun_x, look.sun_y + (0.10 if look.time == "sunset" else 0.0)
    warm = {"day": (255, 250, 222), "sunset": (255, 222, 140), "night": (170, 186, 236)}[look.time]
    reach = {"day": 0.34, "sunset": 0.46, "night": 0.26}[look.time]
    strength = {"day": 0.75, "sunset": 0.85, "night": 0.5}[look.time] * (0.5 if covered else 1.0)
    canvas.soft(glow(), (x - reach, y - reach, x + reach, y + reach), warm, strength)
    if covered:
        return
    disc = {"day": (255, 249, 214), "sunset": (255, 240, 190), "night": (244, 244, 232)}[look.time]
    spot = np.array([[x, y]])
    canvas.dots(spot, disc, 0.052)
    if look.is_night:
        craters = np.array([[x - 0.016, y - 0.012], [x + 0.018, y + 0.014], [x + 0.010, y - 0.024]])
        canvas.dots(craters, (222, 224, 218), 0.010)


def _paint_cloud(canvas: Canvas, look: Look, rng: np.random.Generator, covered: bool) -> None:
    x, y = rng.uniform(-0.05, 1.05), rng.uniform(0.04, 0.30)
    wide = rng.uniform(0.26, 0.44) * (1.35 if covered else 1.0)
    high = wide * rng.uniform(0.30, 0.42)
    sprite = clouds()[int(rng.integers(6))]
    top, _, bottom = look.sky
    body = {"day": (255, 255, 255), "sunset": (255, 206, 176), "night": (92, 106, 150)}[look.time]
    belly = mix(body, top, 0.42 if covered else 0.22)
    if covered:
        body = mix(body, bottom, 0.55)
    canvas.soft(sprite, (x - wide / 2, y - high / 2 + 0.012, x + wide / 2, y + high / 2 + 0.012), belly, 0.8)
    canvas.soft(sprite, (x - wide * 0.46, y - high / 2, x + wide * 0.46, y + high * 0.38), body, 0.85)


def paint_mountain(canvas: Canvas, thing: Thing, look: Look) -> None:
    """A mountain with a lit and a shaded flank and snow on its summit."""
    outline = thing.outline
    side = look.side(thing.x)
    rock = ROCK[look.season]
    light, dark = scaled(rock, 1.16), scaled(rock, 0.80)
    lit, shaded = look.lit(light, 0.62), look.lit(dark, 0.62)
    foot_lit, foot_shaded = look.lit(light, 0.95), look.lit(dark, 0.95)
    canvas.shade(outline, shaded, foot_shaded, Label.MOUNTAIN, grain=0.4)
    summit = outline[8]
    base = np.array([summit[0] + side * thing.form[0] * 0.02, outline[:, 1].max()])
    spine = summit + (base - summit) * np.array([[0.0], [0.3], [0.55], [1.0]])
    spine[1:3, 0] += (thing.form[1:3] - 0.4) * thing.size * 0.3 * -side
    flank = outline[8:] if side > 0 else outline[:9]
    face = np.concatenate([flank, spine[::-1]] if side > 0 else [flank, spine[1:]])
    canvas.shade(face, lit, foot_lit, grain=0.4)
    _paint_summit(canvas, thing, look, spine, side)


def _paint_summit(canvas: Canvas, thing: Thing, look: Look, spine: np.ndarray, side: float) -> None:
    """Snow: the tips of both flanks, closed by a zigzag inside the mountain."""
    keep = 5 if look.is_winter else 3
    outline = thing.outline
    for flank, faces_light in ((outline[8 : 9 + keep], side > 0), (outline[8 - keep : 9][::-1], side < 0)):
        tip, low = flank[0], flank[-1]
        middle = tip + (spine[1] - tip) * (1.5 if look.is_winter else 0.85)
        zigzag = low + (middle - low) * np.array([[0.25], [0.5], [0.75], [1.0]])
        drop = thing.size * 0.07 * np.array([-1.0, 1.0, -0.8, 0.9])
        zigzag[:, 1] += drop
        colour = SNOW if faces_light else (196, 210, 236)
        canvas.fill(np.concatenate([flank, zigzag]), look.lit(colour, 0.55))


def paint_hill(canvas: Canvas, thing: Thing, look: Look) -> None:
    """A line of round hills, lighter at the crest; leaves a hint of woods in it."""
    grass = mix(GRASS[look.season], (96, 140, 150) if not look.is_winter else (190, 206, 232), 0.30)
    crest, foot = look.lit(scaled(grass, 1.02), 0.60), look.lit(scaled(grass, 0.86), 0.72)
    canvas.shade(thing.outline, crest, foot, Label.HILL, grain=0.5)
    rim = thing.outline[:-2] + np.array([0.0, 0.006])
    canvas.lines([rim], mix(crest, look.lit((255, 255, 240), 0.5), 0.35), 0.008)


def paint_weather(canvas: Canvas, look: Look) -> None:
    """What falls or drifts in front of everything."""
    rng = np.random.default_rng((look.seed, 1))
    if look.weather == "rain":
        top = rng.uniform((-0.05, -0.1), (1.1, 1.0), (70, 2))
        fall = np.array([-0.016, 0.062]) * rng.uniform(0.6, 1.2, (70, 1))
        tone = {"day": (206, 220, 234), "sunset": (240, 206, 190), "night": (112, 128, 168)}[look.time]
        canvas.lines(list(np.stack([top, top + fall], 1)), tone, 0.003)
    elif look.weather == "snow":
        tone = {"day": (255, 255, 255), "sunset": (255, 232, 222), "night": (196, 208, 236)}[look.time]
        flakes = rng.random((90, 2))
        canvas.dots(flakes[:60], tone, 0.0060)
        canvas.dots(flakes[60:], tone, 0.0088)
    elif look.weather == "fog":
        for _ in range(4):
            x, y = rng.uniform(0, 1), rng.uniform(0.36, 0.62)
            canvas.soft(glow(), (x - 0.6, y - 0.10, x + 0.6, y + 0.10), look.haze, 0.42)
