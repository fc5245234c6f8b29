"""Drawings as people make them: a few plain shapes for each thing, a triangle over a box for a house.

Scenes are painted with more care than that, and stand where things stand in a landscape. A detector that has
seen scenes alone takes a grey triangle for half a house. Here anything may stand anywhere, in any colour that
somebody might choose.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from controlnet.storybook.scenes.canvas import Canvas
from controlnet.storybook.scenes.labels import Label
from controlnet.storybook.scenes.looks import Colour
from controlnet.storybook.scenes.shapes import disc

Box = tuple[float, float, float, float]
"""x of the middle, y of the foot, half the width, the height; in sides of the picture."""

GREENS = ((60, 160, 60), (110, 170, 80), (150, 200, 90), (40, 110, 50), (90, 130, 40))
WHITES = ((250, 250, 250), (225, 232, 240))
BROWNS = ((150, 105, 60), (95, 65, 40), (190, 150, 100))
GREYS = ((130, 130, 135), (90, 90, 95), (180, 180, 185))
BLUES = ((60, 110, 200), (90, 160, 220), (40, 80, 150), (120, 190, 210))
BRIGHT = ((200, 60, 50), (240, 200, 70), (60, 110, 200), (245, 245, 240), (130, 70, 150), (230, 130, 50))
SKIES = ((150, 200, 240), (90, 160, 235), (200, 215, 225), (250, 250, 250), (245, 180, 120), (30, 35, 80))
SKINS = ((240, 200, 170), (200, 150, 110), (130, 85, 60))
SANDS = ((235, 215, 150), (220, 190, 120))
PANES = (*BLUES, (250, 230, 140))
LEAVES = (*GREENS, (215, 130, 50), (190, 70, 40), (235, 240, 245))

GROUNDS = {
    Label.GRASS: (*GREENS, *GREENS, *WHITES, (180, 160, 80)),
    Label.SAND: SANDS,
    Label.EARTH: BROWNS,
    Label.SEA: BLUES,
    Label.FIELD: ((225, 190, 80), (200, 170, 90)),
}
"""What may lie below the horizon, and its colours."""


class Pens:
    """Plain shapes on a canvas, in colours near those asked for, all of them outlined or none.

    Args:
        canvas: to draw on.
        rng: decides the colours and the outline.
    """

    def __init__(self, canvas: Canvas, rng: np.random.Generator) -> None:
        self.canvas, self.rng = canvas, rng
        self.outline = float(rng.uniform(0.004, 0.014)) if rng.random() < 0.35 else 0.0
        shade = int(rng.integers(0, 60))
        self.ink: Colour = (shade, shade, shade)

    def colour(self, choices: tuple[Colour, ...]) -> Colour:
        """One of them, or near it."""
        near = np.array(choices[self.rng.integers(len(choices))]) + self.rng.uniform(-22, 22, 3)
        red, green, blue = np.clip(near, 0, 255).astype(int).tolist()
        return red, green, blue

    def shape(self, points: list[tuple[float, float]], colour: Colour, label: Label) -> None:
        """A polygon of (x, y)."""
        outline = np.array(points, np.float64)
        self.canvas.fill(outline, colour, label)
        if self.outline:
            self.canvas.lines([np.concatenate([outline, outline[:1]])], self.ink, self.outline, label)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour, label: Label) -> None:
        self.shape([(left, top), (right, top), (right, bottom), (left, bottom)], colour, label)

    def line(self, points: list[tuple[float, float]], colour: Colour, width: float, label: Label) -> None:
        self.canvas.lines([np.array(points, np.float64)], colour, width, label)


def mountain(pens: Pens, box: Box) -> None:
    x, y, wide, high = box
    lean = pens.rng.uniform(-0.4, 0.4) * wide
    rock = pens.colour((*GREYS, *BROWNS, (110, 120, 160)))
    pens.shape([(x - wide, y), (x + lean, y - high), (x + wide, y)], rock, Label.MOUNTAIN)
    if pens.rng.random() < 0.35:
        left, right = (x + lean * 0.7 + side * wide * 0.3 for side in (-1, 1))
        cap = [(left, y - 0.7 * high), (x + lean, y - high), (right, y - 0.7 * high)]
        pens.shape(cap, pens.colour(WHITES), Label.MOUNTAIN)


def hill(pens: Pens, box: Box) -> None:
    x, y, wide, high = box
    dome = [(px, py) for px, py in disc(x, y, 1.4 * wide, 0.6 * high, 32) if py <= y + 1e-9]
    pens.shape(sorted(dome), pens.colour(GREENS), Label.HILL)


def house(pens: Pens, box: Box) -> None:
    x, y, wide, high = box
    walls, eaves = y - 0.6 * high, wide * pens.rng.uniform(1.0, 1.3)
    pens.box(x - wide, walls, x + wide, y, pens.colour(BRIGHT + BROWNS), Label.HOUSE)
    ridge = pens.rng.choice((0.0, 0.5)) * wide
    roof = [(x - eaves, walls), (x - ridge, y - high), (x + ridge, y - high), (x + eaves, walls)]
    pens.shape(roof, pens.colour((*BROWNS, *BRIGHT, *GREYS)), Label.HOUSE)
    if pens.rng.random() < 0.75:
        door = x + pens.rng.uniform(-0.5, 0.5) * wide
        pens.box(door - 0.15 * wide, y - 0.35 * high, door + 0.15 * wide, y, pens.colour(BROWNS), Label.HOUSE)
    for side in (-0.6, 0.6):
        if pens.rng.random() < 0.5:
            left, top = x + (side - 0.15) * wide, y - 0.5 * high
            pens.box(left, top, left + 0.3 * wide, top + 0.16 * high, pens.colour(PANES), Label.HOUSE)


def block(pens: Pens, box: Box) -> None:
    """A large building with rows of windows."""
    x, y, wide, high = box
    high = 1.3 * high
    pens.box(x - wide, y - high, x + wide, y, pens.colour((*GREYS, *BRIGHT, *BROWNS)), Label.BUILDING)
    rows, columns = pens.rng.integers(2, 6, 2)
    glass = pens.colour((*PANES, (60, 60, 70)))
    for row in range(rows):
        for column in range(columns):
            left = x - wide + (column + 0.25) * 2 * wide / columns
            top = y - high + (row + 0.25) * high / rows
            pens.box(left, top, left + wide / columns, top + 0.5 * high / rows, glass, Label.BUILDING)


def tower(pens: Pens, box: Box) -> None:
    x, y, wide, high = box
    wide, high = 0.45 * wide, 1.4 * high
    pens.box(x - wide, y - 0.75 * high, x + wide, y, pens.colour((*GREYS, *BROWNS, *WHITES)), Label.TOWER)
    roof = [(x - 1.2 * wide, y - 0.75 * high), (x, y - high), (x + 1.2 * wide, y - 0.75 * high)]
    pens.shape(roof, pens.colour((*BRIGHT, *GREYS, *BROWNS)), Label.TOWER)


def tree(pens: Pens, box: Box) -> None:
    x, y, wide, high = box
    trunk = pens.rng.uniform(0.08, 0.2) * wide
    pens.box(x - trunk, y - 0.5 * high, x + trunk, y, pens.colour(BROWNS), Label.TREE)
    leaves = pens.colour(LEAVES)
    if pens.rng.random() < 0.6:
        pens.shape(disc(x, y - 0.65 * high, 0.7 * wide, 0.38 * high), leaves, Label.TREE)
        return
    for step in range(pens.rng.integers(1, 4)):
        foot = y - (0.25 + 0.2 * step) * high
        layer = [(x - 0.7 * wide, foot), (x, foot - 0.45 * high), (x + 0.7 * wide, foot)]
        pens.shape(layer, leaves, Label.TREE)


def palm(pens: Pens, box: Box) -> None:
    x, y, wide, high = box
    top = (x + pens.rng.uniform(-0.5, 0.5) * wide, y - 0.8 * high)
    stem = [(x, y), ((x + top[0]) / 2 - 0.1 * wide, y - 0.4 * high), top]
    pens.line(stem, pens.colour(BROWNS), 0.14 * wide, Label.PALM)
    leaves = pens.colour(GREENS)
    for angle in np.linspace(-0.4, np.pi + 0.4, pens.rng.integers(5, 9)):
        tip = (top[0] + wide * np.cos(angle), top[1] - 0.25 * high * np.sin(angle) + 0.05 * high)
        pens.line([top, tip], leaves, 0.12 * wide, Label.PALM)


def person(pens: Pens, box: Box) -> None:
    x, y, wide, high = box
    wide, high = 0.35 * wide, 0.8 * high
    legs, coat = pens.colour((*GREYS, *BLUES, *BROWNS)), pens.colour(BRIGHT + GREENS)
    skin = pens.colour(SKINS)
    spread = pens.rng.uniform(0.2, 0.9) * wide
    for side in (-1, 1):
        pens.line([(x, y - 0.42 * high), (x + side * spread, y)], legs, 0.5 * wide, Label.PERSON)
        hand = (x + side * 1.3 * wide, y - pens.rng.uniform(0.4, 0.95) * high)
        pens.line([(x, y - 0.72 * high), hand], coat, 0.4 * wide, Label.PERSON)
    pens.box(x - 0.6 * wide, y - 0.78 * high, x + 0.6 * wide, y - 0.38 * high, coat, Label.PERSON)
    pens.shape(disc(x, y - 0.88 * high, 0.11 * high, 0.12 * high), skin, Label.PERSON)


def animal(pens: Pens, box: Box) -> None:
    x, y, wide, high = box
    high = 0.6 * high
    coat = pens.colour((*BROWNS, *GREYS, *WHITES, (40, 35, 35)))
    for foot in (-0.6, -0.4, 0.4, 0.6):
        pens.line([(x + foot * wide, y - 0.4 * high), (x + foot * wide, y)], coat, 0.16 * wide, Label.ANIMAL)
    pens.shape(disc(x, y - 0.55 * high, 0.8 * wide, 0.28 * high), coat, Label.ANIMAL)
    side = pens.rng.choice((-1, 1))
    pens.shape(disc(x + 0.85 * side * wide, y - 0.8 * high, 0.28 * wide, 0.2 * high), coat, Label.ANIMAL)


def car(pens: Pens, box: Box) -> None:
    x, y, wide, high = box
    high = 0.55 * high
    paint = pens.colour(BRIGHT + GREYS)
    middle, roof = y - 0.6 * high, y - high
    cabin = [
        (x - 0.6 * wide, middle),
        (x - 0.4 * wide, roof),
        (x + 0.35 * wide, roof),
        (x + 0.6 * wide, middle),
    ]
    pens.shape(cabin, pens.colour((*BLUES, paint, paint)), Label.CAR)
    pens.box(x - wide, y - 0.65 * high, x + wide, y - 0.15 * high, paint, Label.CAR)
    for side in (-0.55, 0.55):
        pens.shape(disc(x + side * wide, y - 0.17 * high, 0.24 * wide, 0.19 * high), (30, 30, 32), Label.CAR)


def boat(pens: Pens, box: Box) -> None:
    x, y, wide, high = box
    deck = y - 0.25 * high
    hull = [(x - wide, deck), (x + wide, deck), (x + 0.6 * wide, y), (x - 0.6 * wide, y)]
    pens.shape(hull, pens.colour(BRIGHT + BROWNS), Label.BOAT)
    pens.line([(x, deck), (x, y - high)], pens.colour(BROWNS), 0.07 * wide, Label.BOAT)
    for side in (-1, 1):
        if pens.rng.random() < 0.75:
            sail = [(x, y - high), (x, y - 0.35 * high), (x + 0.8 * side * wide, y - 0.35 * high)]
            pens.shape(sail, pens.colour((*WHITES, *BRIGHT)), Label.BOAT)


def fence(pens: Pens, box: Box) -> None:
    x, y, wide, high = box
    wide, high, wood = 1.8 * wide, 0.35 * high, pens.colour((*BROWNS, *WHITES))
    for rail in (0.4, 0.8):
        pens.line([(x - wide, y - rail * high), (x + wide, y - rail * high)], wood, 0.12 * high, Label.FENCE)
    for post in np.linspace(-wide, wide, pens.rng.integers(4, 10)):
        pens.line([(x + post, y - high), (x + post, y)], wood, 0.15 * high, Label.FENCE)


def bridge(pens: Pens, box: Box) -> None:
    x, y, wide, high = box
    wide, high, stone = 1.6 * wide, 0.6 * high, pens.colour((*GREYS, *BROWNS, *BRIGHT))
    bow = [(x + wide * np.cos(a), y - 0.5 * high - 0.4 * high * np.sin(a)) for a in np.linspace(np.pi, 0, 13)]
    pens.line(bow, stone, 0.25 * high, Label.BRIDGE)
    for pier in (-0.95, 0.95):
        pens.box(x + (pier - 0.08) * wide, y - 0.6 * high, x + (pier + 0.08) * wide, y, stone, Label.BRIDGE)


def flowers(pens: Pens, box: Box) -> None:
    x, y, wide, high = box
    bed = disc(x, y - 0.12 * high, wide, 0.14 * high)
    pens.shape(bed, pens.colour(GREENS), Label.FLOWER)
    across, down = pens.rng.uniform(-0.8, 0.8, 24) * wide, pens.rng.uniform(-0.09, 0.09, 24) * high
    spots = np.stack([x + across, y - 0.12 * high + down], 1)
    for part in np.array_split(spots, 3):
        pens.canvas.dots(part, pens.colour(BRIGHT), float(pens.rng.uniform(0.05, 0.12)) * wide, Label.FLOWER)


def lake(pens: Pens, box: Box) -> None:
    x, y, wide, high = box
    pens.shape(disc(x, y, 1.5 * wide, 0.2 * high, 24), pens.colour(BLUES), Label.LAKE)


def _strip(pens: Pens, horizon: float, colours: tuple[Colour, ...], label: Label) -> None:
    """What comes from the horizon towards us, as broad in front as it likes."""
    far, near = pens.rng.uniform(0.2, 0.8, 2)
    thin, broad = pens.rng.uniform(0.01, 0.06), pens.rng.uniform(0.08, 0.3)
    strip = [(far - thin, horizon), (far + thin, horizon), (near + broad, 1.01), (near - broad, 1.01)]
    pens.shape(strip, pens.colour(colours), label)


BEHIND: tuple[Callable[[Pens, Box], None], ...] = (mountain, mountain, hill)
THINGS: tuple[Callable[[Pens, Box], None], ...] = (
    house, house, block, tower, tree, tree, palm, person, person, animal, car, boat, fence, bridge, flowers,
    lake,
)  # fmt: skip


def draw(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A drawing of a few things before a horizon.

    Args:
        rng: decides everything.
        size: side in pixels.

    Returns:
        uint8 RGB ``[size, size, 3]``, and its map, uint8 ``[size, size]``.
    """
    canvas = Canvas(size)
    pens = Pens(canvas, rng)
    horizon = float(rng.uniform(0.35, 0.75))
    pens.box(-0.05, -0.05, 1.05, 1.05, pens.colour(SKIES), Label.SKY)
    _sun_and_clouds(pens, horizon)
    for _ in range(rng.integers(0, 4)):
        x, wide, high = rng.uniform((0, 0.1, 0.12), (1, 0.35, 0.5)).tolist()
        BEHIND[rng.integers(len(BEHIND))](pens, (x, horizon + 0.005, wide, high))
    _ground(pens, horizon)
    for foot in np.sort(rng.uniform(horizon, 1.0, rng.integers(1, 7))):  # what is nearer comes last
        scale = float(rng.uniform(0.5, 1.3)) * (0.5 + foot - horizon)
        box = (float(rng.uniform(0.05, 0.95)), float(foot) + 0.01, 0.16 * scale, 0.42 * scale)
        THINGS[rng.integers(len(THINGS))](pens, box)
    return canvas.picture, canvas.labels


def _sun_and_clouds(pens: Pens, horizon: float) -> None:
    rng = pens.rng
    if rng.random() < 0.4:
        reach = float(rng.uniform(0.03, 0.08))
        sun = disc(rng.uniform(0.1, 0.9), rng.uniform(0.08, 0.5 * horizon), reach, reach)
        pens.shape(sun, pens.colour(((250, 220, 80), (250, 245, 220))), Label.SKY)
    for _ in range(rng.integers(0, 3)):
        x, y, reach = rng.uniform(0.1, 0.9), rng.uniform(0.06, 0.6 * horizon), rng.uniform(0.04, 0.1)
        paint = pens.colour((*WHITES, (190, 195, 205)))
        for step in (-1, 0, 1):
            pens.shape(disc(x + step * reach, y, reach, 0.6 * reach), paint, Label.SKY)


def _ground(pens: Pens, horizon: float) -> None:
    rng = pens.rng
    kinds = (Label.GRASS, Label.GRASS, Label.GRASS, *GROUNDS)
    ground = kinds[rng.integers(len(kinds))]
    pens.box(-0.05, horizon, 1.05, 1.05, pens.colour(GROUNDS[ground]), ground)
    shore = float(rng.uniform(horizon + 0.05, 1.0))
    if ground == Label.SEA and rng.random() < 0.5:
        beach = (Label.SAND, Label.GRASS)[rng.integers(2)]
        pens.box(-0.05, shore, 1.05, 1.05, pens.colour(GROUNDS[beach]), beach)
    elif ground != Label.SEA and rng.random() < 0.15:
        pens.box(-0.05, horizon, 1.05, shore, pens.colour(BLUES), Label.SEA)
    elif ground != Label.SEA and (chance := rng.random()) < 0.5:
        ways = ((GREYS, Label.ROAD), (BROWNS + SANDS, Label.PATH), (BLUES, Label.RIVER))
        _strip(pens, horizon, *ways[int(chance * 6)])
