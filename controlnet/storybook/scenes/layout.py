"""What stands where: the part of a scene that its map tells.

A layout is a list of things in the order of painting, far to near. Five kinds of place (coast, lake, river,
farm, town) each choose their ground; standing things look for room on it. Coordinates are shares of the
picture's side, y down.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from controlnet.storybook.scenes.labels import Label
from controlnet.storybook.scenes.shapes import band, blob, peak, ribbon, ridge, wedge

_COARSE = 64  # side of the map in which things look for room
_FAR = {"mountain": 0.10, "hill": 0.16}  # inverse depth of what is behind the ground's end

# Height of a thing at the lower edge of the picture, and its breadth as a share of its height.
HEIGHT = {
    "house": 0.44, "building": 0.80, "tower": 0.80, "tree": 0.60, "pine": 0.66, "palm": 0.62, "boat": 0.40,
    "car": 0.25, "car_behind": 0.31, "person": 0.43, "sheep": 0.27, "cow": 0.31, "fence": 0.17,
    "bridge": 0.34,
}  # fmt: skip
BREADTH = {
    "house": 1.30, "building": 0.66, "tower": 0.34, "tree": 0.72, "pine": 0.52, "palm": 0.66, "boat": 1.00,
    "car": 1.90, "car_behind": 1.15, "person": 0.46, "sheep": 1.35, "cow": 1.50, "fence": 4.2, "bridge": 2.0,
}  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """One thing of a scene: a brush (``kind``), a foot (``x``, ``y``), a height (``size``) and a shape.

    ``depth`` is 0 at the lower edge and 1 at the horizon. ``outline`` is the shape of ground, water and
    ridges; standing things have none, and are shaped by their brush from ``form``, numbers from 0 to 1.
    ``order`` sorts the painting. ``nearness`` is inverse depth (1 at the ground's lower edge, 0 infinitely
    far): that at the upper edge of the picture, and how much ground gains from there to the lower edge.
    """

    kind: str
    x: float
    y: float
    size: float
    depth: float
    form: np.ndarray
    outline: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    order: float = 0.0
    nearness: tuple[float, float] = (0.0, 0.0)

    def points(self, *points: tuple[float, float] | np.ndarray, flip: float = 1.0) -> np.ndarray:
        """Points given in heights of this thing, (0, 0) at its foot and y up, as points of the picture."""
        return np.array(points) * (self.size * flip, -self.size) + (self.x, self.y)


@dataclass
class Plan:
    """A layout that grows: ground first, then what stands on it."""

    rng: np.random.Generator
    horizon: float
    things: list[Thing] = field(default_factory=list)
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    coarse: np.ndarray = field(default_factory=lambda: np.zeros((_COARSE, _COARSE), np.uint8))

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.rng.random())

    def level(self, near: float) -> float:
        """The y of ground at nearness 0 (horizon) to 1 (lower edge)."""
        return self.horizon + (1 - self.horizon) * near

    def spread(self, kind: str, outline: np.ndarray, label: Label | None = None, order: float = 0.0) -> Thing:
        """Lay ground, water or a ridge down; ``label`` lets standing things look for it."""
        low, high = outline[:, 1].min(), outline[:, 1].max()
        middle = float(np.clip((low + high) / 2, self.horizon, 1))
        depth = 1 - (middle - self.horizon) / (1 - self.horizon)
        x = float(outline[:, 0].mean())
        gain = 0.78 / (1 - self.horizon)
        near = (_FAR[kind], 0.0) if kind in _FAR else (0.22 - gain * self.horizon, gain)
        form = self.rng.random(12)
        thing = Thing(kind, x, float(high), float(high - low), depth, form, outline, order, near)
        self.things.append(thing)
        if label is not None:
            cv2.fillPoly(self.coarse, [np.rint(outline * _COARSE - 0.5).astype(np.int32)], int(label))
        return thing

    def stand(
        self, kind: str, on: tuple[Label, ...], near: tuple[float, float], share: float = 1.0
    ) -> Thing | None:
        """Put a thing somewhere on ground of one of the labels ``on``, ``near`` 0 to 1, if there is room."""
        if not self.chance(share):
            return None
        for _ in range(10):
            nearness, x = self.between(*near), self.between(0.05, 0.95)
            thing = self.place(kind, x, nearness, on)
            if thing is not None:
                return thing
        return None

    def place(self, kind: str, x: float, nearness: float, on: tuple[Label, ...] = ()) -> Thing | None:
        """Put a thing at one spot; None if the ground is not one of ``on`` or another thing would be
        hidden.
        """
        y = self.level(nearness)
        near = 0.22 + 0.78 * nearness  # a thing's inverse depth is the scale at which it is seen
        size = HEIGHT[kind] * near * self.between(0.88, 1.12)
        half = BREADTH[kind] * size / 2
        box = (x - half, y - size, x + half, y)
        if on:
            row = self.coarse[min(_COARSE - 1, int(y * _COARSE))].tolist()
            for spot in (x - half * 0.84, x, x + half * 0.84):
                if not -0.1 < spot < 1.1 or row[min(max(int(spot * _COARSE), 0), _COARSE - 1)] not in on:
                    return None
            if any(_hides(box, other) for other in self.boxes):
                return None
        thing = Thing(kind, x, y, size, 1 - nearness, self.rng.random(12), order=y, nearness=(near, 0.0))
        self.things.append(thing)
        self.boxes.append(box)
        return thing


def _hides(box: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    """Whether two boxes share more than a third of the smaller one."""
    across = min(box[2], other[2]) - max(box[0], other[0])
    down = min(box[3], other[3]) - max(box[1], other[1])
    if across <= 0 or down <= 0:
        return False
    areas = ((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return across * down > 0.3 * min(areas)


def compose(rng: np.random.Generator) -> tuple[str, list[Thing]]:
    """Draw a layout: the name of the place, and its things from far to near."""
    plan = Plan(rng, float(rng.uniform(0.36, 0.50)))
    place = str(rng.choice(list(PLACES)))
    PLACES[place](plan)
    return place, sorted(plan.things, key=lambda thing: thing.order)


def _mountains(plan: Plan, share: float) -> None:
    if plan.chance(share):
        count = int(plan.rng.integers(2, 5))
        for step in plan.rng.permutation(count):
            x = (step + plan.between(0.2, 0.8)) / count * 1.2 - 0.1
            height = plan.between(0.14, 0.30)
            plan.spread(
                "mountain", peak(plan.rng, x, plan.horizon + 0.02, height, height * plan.between(0.8, 1.3))
            )


def _hills(plan: Plan, share: float, count: int = 2) -> None:
    for step in range(count):
        if plan.chance(share):
            height = plan.between(0.05, 0.15) * (1 - 0.3 * step)
            plan.spread("hill", ridge(plan.rng, plan.horizon + 0.02 + 0.012 * step, height))


def _meadow(plan: Plan) -> None:
    top = plan.horizon + 0.004
    plan.spread("grass", np.array([[-0.1, top], [1.1, top], [1.1, 1.1], [-0.1, 1.1]]), Label.GRASS)


def _grove(plan: Plan, kinds: tuple[str, ...], most: int, near: tuple[float, float] = (0.03, 0.75)) -> None:
    for _ in range(int(plan.rng.integers(1, most + 1))):
        plan.stand(str(plan.rng.choice(kinds)), (Label.GRASS, Label.EARTH), near)


def _flowers(plan: Plan, share: float) -> None:
    for _ in range(2):
        if plan.chance(share):
            near = plan.between(0.35, 0.92)
            x, y = plan.between(0.1, 0.9), plan.level(near)
            if plan.coarse[min(63, int(y * 64)), int(x * 64)] == Label.GRASS:
                width = plan.between(0.15, 0.24) * (0.35 + near)
                plan.spread("flower", blob(plan.rng, x, y, width, width * 0.36), Label.FLOWER)


def _coast(plan: Plan) -> None:
    _mountains(plan, 0.3)
    if plan.chance(0.55):
        height = plan.between(0.06, 0.14)
        headland = ridge(plan.rng, plan.horizon + 0.015, height)
        headland[:, 0] = headland[:, 0] * 0.55 + (0.0 if plan.chance(0.5) else 0.5)
        plan.spread("hill", headland)
    _meadow(plan)
    left, right = plan.between(0.25, 0.6), plan.between(0.25, 0.6)
    width = plan.between(0.18, 0.34)
    shore = (plan.level(left), plan.level(right))
    inland = (shore[0] + width * plan.between(0.8, 1.2), shore[1] + width * plan.between(0.8, 1.2))
    plan.spread("sand", band(plan.rng, (plan.horizon + 0.01,) * 2, inland, 0.02), Label.SAND)
    sea = band(plan.rng, (plan.horizon + 0.002,) * 2, shore, 0.012)
    plan.spread("sea", sea, Label.SEA, order=plan.horizon)
    _flowers(plan, 0.35)
    for _ in range(2):
        plan.stand("boat", (Label.SEA,), (0.06, 0.45), 0.65)
    plan.stand("tower", (Label.GRASS, Label.SAND), (0.4, 0.75), 0.35)
    plan.stand("house", (Label.GRASS, Label.SAND), (0.4, 0.85), 0.6)
    for _ in range(3):
        plan.stand("palm", (Label.SAND, Label.GRASS), (0.35, 0.95), 0.75)
    plan.stand("person", (Label.SAND,), (0.35, 0.9), 0.5)
    plan.stand("fence", (Label.GRASS,), (0.75, 0.95), 0.25)
    _grove(plan, ("tree",), 2, (0.5, 0.95))


def _lake(plan: Plan) -> None:
    _mountains(plan, 0.75)
    _hills(plan, 0.6)
    _meadow(plan)
    near = plan.between(0.34, 0.52)
    wide, high = plan.between(0.26, 0.46), plan.between(0.10, 0.16)
    lake = blob(plan.rng, plan.between(0.25, 0.75), plan.level(near), wide, high, bumps=0.10)
    if plan.chance(0.35):
        shore = (lake - lake.mean(0)) * np.array([1.10, 1.22]) + lake.mean(0)
        plan.spread("sand", shore, Label.SAND, order=lake[:, 1].min() - 1e-3)
    plan.spread("lake", lake, Label.LAKE, order=lake[:, 1].min())
    _paths(plan, 0.6, (0.72, 1.0))
    _flowers(plan, 0.4)
    plan.stand("boat", (Label.LAKE,), (0.2, 0.7), 0.75)
    plan.stand("house", (Label.GRASS,), (0.1, 0.8), 0.8)
    plan.stand("tower", (Label.GRASS,), (0.05, 0.3), 0.15)
    plan.stand("person", (Label.GRASS, Label.SAND, Label.PATH), (0.6, 0.92), 0.4)
    plan.stand(str(plan.rng.choice(("sheep", "cow"))), (Label.GRASS,), (0.4, 0.9), 0.3)
    plan.stand("fence", (Label.GRASS,), (0.7, 0.95), 0.3)
    _grove(plan, ("tree", "tree", "pine"), 6)


def _river(plan: Plan) -> None:
    _mountains(plan, 0.5)
    _hills(plan, 0.8)
    _meadow(plan)
    _fields(plan, 0.4)
    start, end = plan.between(0.3, 0.7), plan.between(0.25, 0.75)
    river = ribbon(
        plan.rng, start, end, plan.horizon, (0.0, 1.05), (0.03, plan.between(0.26, 0.40)), sway=0.12
    )
    plan.spread("river", river, Label.RIVER, order=plan.horizon)
    if plan.chance(0.6):
        _bridge(plan, river)
    else:
        plan.stand("boat", (Label.RIVER,), (0.55, 0.95), 0.8)
    _flowers(plan, 0.4)
    plan.stand("house", (Label.GRASS,), (0.1, 0.7), 0.75)
    plan.stand("tower", (Label.GRASS,), (0.05, 0.35), 0.2)
    plan.stand(str(plan.rng.choice(("sheep", "cow"))), (Label.GRASS,), (0.35, 0.9), 0.45)
    plan.stand("person", (Label.GRASS,), (0.4, 0.9), 0.35)
    _grove(plan, ("tree", "tree", "pine"), 6)


def _bridge(plan: Plan, river: np.ndarray) -> None:
    near = plan.between(0.22, 0.6)
    y = plan.level(near)
    half = len(river) // 2
    left, right = (np.interp(y, bank[:, 1], bank[:, 0]) for bank in (river[:half], river[half:][::-1]))
    thing = plan.place("bridge", float(left + right) / 2, near)
    assert thing is not None  # it may stand on any ground
    size = max(float(right - left) * 1.5, 0.36) / BREADTH["bridge"]
    plan.things[-1] = replace(thing, size=size)
    plan.boxes[-1] = (thing.x - size, y - size, thing.x + size, y)


def _fields(plan: Plan, share: float) -> None:
    for _ in range(2):
        if plan.chance(share):
            near = plan.between(0.04, 0.5)
            depth = plan.between(0.20, 0.36)
            x = plan.between(0.0, 0.65)
            spot = wedge(
                plan.rng, plan.horizon, (near, min(near + depth, 1.05)), (x, x + plan.between(0.35, 0.65))
            )
            plan.spread("field", spot, Label.FIELD)


def _paths(plan: Plan, share: float, near: tuple[float, float] = (0.0, 1.0)) -> None:
    if plan.chance(share):
        start = plan.between(0.3, 0.7)
        end = plan.between(0.15, 0.85)
        top = near[0] + 0.02
        width = (0.02 + 0.07 * top, plan.between(0.13, 0.2))
        outline = ribbon(plan.rng, start, end, plan.horizon, (top, 1.05), width, sway=0.10)
        plan.spread("path", outline, Label.PATH)


def _roads(plan: Plan) -> None:
    if plan.chance(0.5):
        near = plan.between(0.42, 0.68)
        top = plan.level(near)
        tilt = plan.between(-0.03, 0.03)
        wide = plan.between(0.13, 0.18)
        outline = band(plan.rng, (top - tilt, top + tilt), (top - tilt + wide, top + tilt + wide), 0.0)
        plan.spread("road", outline, Label.ROAD)
        for _ in range(2):
            plan.stand("car", (Label.ROAD,), (near + 0.06, near + 0.24), 0.65)
    else:
        start, end = plan.between(0.35, 0.65), plan.between(0.35, 0.65)
        width = (0.03, plan.between(0.40, 0.55))
        outline = ribbon(plan.rng, start, end, plan.horizon, (0.0, 1.05), width, sway=0.05)
        plan.spread("road_away", outline, Label.ROAD)
        plan.stand("car_behind", (Label.ROAD,), (0.35, 0.85), 0.85)


def _farm(plan: Plan) -> None:
    _mountains(plan, 0.3)
    _hills(plan, 0.85)
    _meadow(plan)
    _fields(plan, 0.75)
    if plan.chance(0.4):
        x, near = plan.between(0.15, 0.85), plan.between(0.35, 0.85)
        plan.spread("earth", blob(plan.rng, x, plan.level(near), plan.between(0.15, 0.3), 0.09), Label.EARTH)
    _paths(plan, 0.7)
    _flowers(plan, 0.35)
    plan.stand("house", (Label.GRASS, Label.EARTH, Label.FIELD), (0.12, 0.7), 0.9)
    plan.stand("fence", (Label.GRASS, Label.FIELD, Label.EARTH), (0.45, 0.95), 0.7)
    animal = str(plan.rng.choice(("sheep", "cow")))
    for _ in range(3):
        plan.stand(animal, (Label.GRASS, Label.EARTH), (0.3, 0.92), 0.65)
    plan.stand("person", (Label.GRASS, Label.PATH, Label.EARTH, Label.FIELD), (0.4, 0.92), 0.45)
    _grove(plan, ("tree", "tree", "pine"), 5)


def _town(plan: Plan) -> None:
    _mountains(plan, 0.25)
    _hills(plan, 0.5)
    _meadow(plan)
    if plan.chance(0.3):
        earth = blob(plan.rng, plan.between(0.1, 0.9), plan.level(0.85), plan.between(0.2, 0.35), 0.1)
        plan.spread("earth", earth, Label.EARTH)
    _roads(plan)
    _flowers(plan, 0.3)
    for _ in range(4):
        plan.stand("building", (Label.GRASS,), (0.06, 0.36), 0.75)
    plan.stand("tower", (Label.GRASS,), (0.05, 0.3), 0.3)
    plan.stand("house", (Label.GRASS, Label.EARTH), (0.12, 0.9), 0.8)
    plan.stand("person", (Label.GRASS, Label.EARTH, Label.ROAD), (0.45, 0.95), 0.6)
    plan.stand("person", (Label.GRASS, Label.EARTH), (0.35, 0.95), 0.4)
    plan.stand("fence", (Label.GRASS,), (0.8, 0.97), 0.3)
    _grove(plan, ("tree", "tree", "pine"), 5)


PLACES = {"coast": _coast, "lake": _lake, "river": _river, "farm": _farm, "town": _town}
