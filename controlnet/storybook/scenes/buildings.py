"""Houses, town buildings, towers, bridges and fences."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from controlnet.storybook.scenes.canvas import Canvas, glow
from controlnet.storybook.scenes.ground import paint_shadow
from controlnet.storybook.scenes.labels import Label
from controlnet.storybook.scenes.layout import Thing
from controlnet.storybook.scenes.looks import HOUSE_COLOURS, Colour, Look, mix, scaled

SNOW = (240, 245, 253)
LAMP = (255, 214, 112)


def _box(left: float, bottom: float, right: float, top: float) -> tuple[tuple[float, float], ...]:
    return (left, bottom), (left, top), (right, top), (right, bottom)


def _window(
    canvas: Canvas, thing: Thing, look: Look, box: tuple[float, float, float, float], flip: float
) -> None:
    """A framed window that shines at night."""
    left, bottom, right, top = box
    rim = 0.016
    canvas.fill(
        thing.points(*_box(left - rim, bottom - rim, right + rim, top + rim), flip=flip),
        look.lit((250, 244, 232), thing.depth),
    )
    glass = (
        mix(LAMP, look.haze, 0.35 * thing.depth) if look.is_night else look.lit((84, 112, 142), thing.depth)
    )
    if look.time == "sunset":
        glass = look.lit((236, 170, 96), thing.depth)
    canvas.fill(thing.points(*_box(left, bottom, right, top), flip=flip), glass)


def paint_house(canvas: Canvas, thing: Thing, look: Look) -> None:
    """A house seen from its corner: a gable with a door, a long side under the roof, and a chimney."""
    form, depth = thing.form, thing.depth * 0.65
    flip = 1.0 if form[0] < 0.5 else -1.0
    paint_shadow(canvas, thing, look, thing.size * 1.5)
    wall = HOUSE_COLOURS[look.house_colour]
    roofs: tuple[Colour, ...] = ((88, 92, 112), (124, 88, 70), (104, 82, 92))
    roof = SNOW if look.is_winter else roofs[look.seed % 3]
    gable_lit = look.side(thing.x) * flip < 0
    front, long = (
        (scaled(wall, 1.04), scaled(wall, 0.80)) if gable_lit else (scaled(wall, 0.82), scaled(wall, 1.02))
    )
    eaves, ridge = 0.50, 0.90
    corner = -0.10 + 0.10 * form[1]
    left, right = -0.58, 0.60
    peak = (left + corner) / 2
    chimney = thing.points(*_box(0.24, 0.70, 0.35, 1.0), flip=flip)
    canvas.fill(chimney, look.lit((150, 104, 92), depth), Label.HOUSE)
    canvas.fill(
        thing.points(*_box(corner, 0.0, right, eaves + 0.04), flip=flip), look.lit(long, depth), Label.HOUSE
    )
    gable = thing.points(
        (left, 0), (left, eaves), (peak, ridge - 0.03), (corner, eaves), (corner, 0), flip=flip
    )
    canvas.fill(gable, look.lit(front, depth), Label.HOUSE)
    shadow = thing.points(*_box(corner, eaves - 0.06, right, eaves), flip=flip)
    canvas.fill(shadow, look.lit(scaled(long, 0.82), depth))
    slope = thing.points(
        (peak, ridge),
        (right - 0.07, ridge),
        (right + 0.06, eaves - 0.03),
        (corner + 0.03, eaves - 0.03),
        flip=flip,
    )
    canvas.fill(slope, look.lit(scaled(roof, 0.96 if gable_lit else 1.1), depth), Label.HOUSE)
    verge = thing.points(
        (left - 0.06, eaves - 0.05), (left - 0.06, eaves + 0.03), (peak, ridge),
        (corner + 0.03, eaves + 0.03), (corner + 0.03, eaves - 0.05), (peak, ridge - 0.11), flip=flip,
    )  # fmt: skip
    canvas.fill(verge, look.lit(scaled(roof, 0.84), depth), Label.HOUSE)
    if look.is_winter:
        canvas.fill(
            thing.points(*_box(0.23, 0.98, 0.36, 1.02), flip=flip), look.lit(SNOW, depth), Label.HOUSE
        )
    else:
        canvas.fill(
            thing.points(*_box(0.23, 0.98, 0.36, 1.02), flip=flip),
            look.lit((116, 80, 74), depth),
            Label.HOUSE,
        )
    door = thing.points(*_box(peak - 0.075, 0.0, peak + 0.075, 0.30), flip=flip)
    canvas.fill(door, look.lit((112, 70, 52), depth))
    _window(canvas, thing, look, (peak - 0.06, 0.46, peak + 0.06, 0.60), flip)
    middle = (corner + right) / 2
    for x in (middle - 0.17, middle + 0.17):
        _window(canvas, thing, look, (x - 0.075, 0.16, x + 0.075, 0.34), flip)
    if look.is_night:
        reach = thing.size * 0.55
        box = (thing.x - reach, thing.y - reach * 0.9, thing.x + reach, thing.y + reach * 0.25)
        canvas.soft(glow(), box, (255, 196, 96), 0.35, only=Label.GRASS)


def paint_building(canvas: Canvas, thing: Thing, look: Look) -> None:
    """A town building: three floors of two broad windows, a cornice, and a flat or pitched roof."""
    form, depth = thing.form, thing.depth
    paint_shadow(canvas, thing, look, thing.size * 0.75)
    plasters: tuple[Colour, ...] = (
        (206, 170, 140),
        (176, 182, 192),
        (214, 190, 152),
        (188, 152, 142),
        (168, 176, 164),
    )
    wall = plasters[int(form[0] * 5)]
    half, top = 0.27 + 0.05 * form[1], 0.82
    side = look.side(thing.x)
    canvas.fill(thing.points(*_box(-half, 0, half, top)), look.lit(wall, depth), Label.BUILDING)
    shade = thing.points(*_box(half * 0.80, 0, half, top), flip=-side)
    canvas.fill(shade, look.lit(scaled(wall, 0.84), depth))
    roof = SNOW if look.is_winter else mix((112, 84, 84), wall, 0.15)
    outline: tuple[tuple[float, float], ...]
    if form[2] < 0.5:
        outline = ((-half - 0.03, top), (-half * 0.66, 0.98), (half * 0.66, 0.98), (half + 0.03, top))
    else:
        outline = _box(-half - 0.025, top - 0.02, half + 0.025, top + 0.07)
    canvas.fill(thing.points(*outline), look.lit(roof, depth), Label.BUILDING)
    canvas.fill(thing.points(*_box(-half, 0.245, half, 0.265)), look.lit(scaled(wall, 1.12), depth))
    glass = mix(LAMP, look.haze, 0.35 * depth) if look.is_night else look.lit((84, 102, 128), depth)
    if look.time == "sunset":
        glass = look.lit((246, 190, 112), depth)
    frame = look.lit(scaled(wall, 1.16), depth)
    for low in (0.32, 0.56):
        for middle in (-half * 0.5, half * 0.5):
            left, right = middle - half * 0.30, middle + half * 0.30
            canvas.fill(thing.points(*_box(left - 0.018, low - 0.018, right + 0.018, low + 0.178)), frame)
            canvas.fill(thing.points(*_box(left, low, right, low + 0.16)), glass)
    for left, right in ((-half * 0.82, -half * 0.34), (half * 0.34, half * 0.82)):
        canvas.fill(thing.points(*_box(left, 0.05, right, 0.19)), glass)
    canvas.fill(thing.points(*_box(-half * 0.2, 0, half * 0.2, 0.19)), look.lit((98, 66, 56), depth))


def paint_tower(canvas: Canvas, thing: Thing, look: Look) -> None:
    """A round tower with a pointed roof and a lamp room."""
    depth, side = thing.depth, look.side(thing.x)
    paint_shadow(canvas, thing, look, thing.size * 0.36)
    stone = (222, 214, 202)
    body = ((-0.125, 0.0), (-0.092, 0.70), (0.092, 0.70), (0.125, 0.0))
    canvas.fill(thing.points(*body), look.lit(stone, depth), Label.TOWER)
    for low, wide in ((0.12, 0.119), (0.42, 0.105)):
        stripe = ((-wide, low), (-wide + 0.007, low + 0.15), (wide - 0.007, low + 0.15), (wide, low))
        canvas.fill(thing.points(*stripe), look.lit((172, 108, 92), depth))
    shade = ((0.05, 0.0), (0.04, 0.70), (0.092, 0.70), (0.125, 0.0))
    coverage, window = canvas.mask(thing.points(*shade, flip=-side))
    canvas.blend(coverage // 4, window, (30, 30, 60))
    canvas.fill(
        thing.points(*_box(-0.125, 0.69, 0.125, 0.73)), look.lit(scaled(stone, 0.72), depth), Label.TOWER
    )
    lamp = mix(LAMP, look.haze, 0.2 * depth) if look.time != "day" else look.lit((120, 150, 176), depth)
    canvas.fill(thing.points(*_box(-0.075, 0.73, 0.075, 0.83)), lamp, Label.TOWER)
    roof = SNOW if look.is_winter else (110, 92, 104)
    canvas.fill(thing.points((-0.12, 0.82), (0.0, 1.0), (0.12, 0.82)), look.lit(roof, depth), Label.TOWER)
    canvas.fill(
        thing.points((0.0, 0.82), (0.0, 1.0), (0.12, 0.82), flip=-side), look.lit(scaled(roof, 0.84), depth)
    )
    canvas.fill(thing.points(*_box(-0.035, 0.0, 0.035, 0.09)), look.lit((98, 70, 60), depth))
    if look.is_night:
        reach = thing.size * 0.34
        x, y = thing.x, thing.y - thing.size * 0.78
        canvas.soft(
            glow(), (x - reach, y - reach, x + reach, y + reach), (255, 226, 150), 0.5, only=Label.SKY
        )


def paint_bridge(canvas: Canvas, thing: Thing, look: Look) -> None:
    """A stone bridge of one wide arch, through which the water shows."""
    depth, form = thing.depth * 0.7, thing.form
    stone = mix((190, 170, 148), (160, 164, 176), float(form[0]))
    across = np.linspace(-1.0, 1.0, 15)
    deck = 0.68 + 0.32 * (1 - across**2)
    arch = np.linspace(0, np.pi, 13)
    hole = zip(0.62 * np.cos(arch), 0.62 * np.sin(arch), strict=True)
    outline = thing.points(*zip(across, deck, strict=True), (1.0, 0.0), *hole, (-1.0, 0.0))
    coverage, window = canvas.mask(outline)
    if not coverage.size:
        return
    canvas.blend(coverage, window, look.lit(stone, depth))
    canvas.mark(coverage, window, Label.BRIDGE)
    ring = thing.points(*zip(0.68 * np.cos(arch), 0.68 * np.sin(arch), strict=True))
    canvas.lines([ring], look.lit(scaled(stone, 0.70), depth), thing.size * 0.08)
    wall = thing.points(*zip(across, deck - 0.20, strict=True))
    canvas.lines([wall], look.lit(scaled(stone, 0.76), depth), thing.size * 0.04)
    rail = thing.points(*zip(across * 0.98, deck - 0.06, strict=True))
    top = SNOW if look.is_winter else scaled(stone, 1.18)
    canvas.lines([rail], look.lit(top, depth), thing.size * 0.12)


def paint_fence(canvas: Canvas, thing: Thing, look: Look) -> None:
    """A fence of broad planks with pointed tops."""
    depth = thing.depth
    woods: tuple[Colour, ...] = ((238, 230, 214), (170, 124, 84), (196, 152, 104))
    wood = woods[int(thing.form[0] * 3)]
    count = 9
    edges = np.linspace(-2.1, 2.1, count + 1)
    planks: list[tuple[float, float]] = [(-2.1, 0.0)]
    for left, right in pairwise(edges):
        planks += [(left, 0.78), ((left + right) / 2, 1.0), (right, 0.78)]
    outline = thing.points(*planks, (2.1, 0.0))
    canvas.shade(outline, look.lit(wood, depth), look.lit(scaled(wood, 0.80), depth), Label.FENCE)
    gaps = [thing.points((x, 0.0), (x, 0.80)) for x in edges[1:-1]]
    canvas.lines(gaps, look.lit(scaled(wood, 0.62), depth), max(0.004, thing.size * 0.05))
    rail = [thing.points((-2.1, 0.45), (2.1, 0.45))]
    canvas.lines(rail, look.lit(scaled(wood, 0.74), depth), thing.size * 0.10)
    if look.is_winter:
        caps = np.stack([(edges[:-1] + edges[1:]) / 2, np.full(count, 0.90)], 1)
        canvas.dots(thing.points(*caps), look.lit(SNOW, depth), thing.size * 0.07)
