"""Trees and palms."""

from __future__ import annotations

import numpy as np

from controlnet.storybook.scenes.canvas import Canvas
from controlnet.storybook.scenes.ground import paint_shadow
from controlnet.storybook.scenes.labels import Label
from controlnet.storybook.scenes.layout import Thing
from controlnet.storybook.scenes.looks import LEAVES, Look, mix, scaled
from controlnet.storybook.scenes.shapes import circle

BARK = (112, 80, 62)


def _crown(middle: np.ndarray, wide: float, high: float, form: np.ndarray) -> np.ndarray:
    """A leafy outline: an ellipse with soft bulges."""
    angle = circle(30)
    reach = 1 + 0.09 * np.sin(5 * angle + 6.3 * form[0]) + 0.05 * np.sin(3 * angle + 6.3 * form[1])
    return middle + np.stack([wide * reach * np.cos(angle), -high * reach * np.sin(angle)], 1)


def paint_tree(canvas: Canvas, thing: Thing, look: Look) -> None:
    """A leafy tree; blossoms in spring, snow in winter."""
    size, side, form = thing.size, look.side(thing.x), thing.form
    paint_shadow(canvas, thing, look, size * 0.62)
    colours = LEAVES[look.season]
    leaf = colours[int((form[2] + look.seed % 97 / 97) % 1.0 * len(colours))]
    bark = mix(BARK, leaf, 0.12)
    trunk = thing.points((-0.055, 0.0), (-0.038, 0.5), (0.038, 0.5), (0.055, 0.0))
    canvas.fill(trunk, look.lit(bark, thing.depth), Label.TREE)
    lit_edge = thing.points((0.015 * side, 0.0), (0.01 * side, 0.4), (0.038 * side, 0.4), (0.055 * side, 0.0))
    canvas.fill(lit_edge, look.lit(scaled(bark, 1.25), thing.depth))
    middle = np.array([thing.x, thing.y - size * 0.64])
    wide, high = size * (0.29 + 0.07 * form[3]), size * (0.33 + 0.03 * form[4])
    canvas.fill(_crown(middle, wide, high, form), look.lit(scaled(leaf, 0.78), thing.depth), Label.TREE)
    step = np.array([side * wide * 0.13, -high * 0.12])
    canvas.fill(_crown(middle + step, wide * 0.80, high * 0.80, form[1:]), look.lit(leaf, thing.depth))
    canvas.fill(
        _crown(middle + 2.4 * step, wide * 0.48, high * 0.46, form[2:]),
        look.lit(mix(leaf, (255, 250, 214) if not look.is_winter else (255, 255, 255), 0.24), thing.depth),
    )


def paint_pine(canvas: Canvas, thing: Thing, look: Look) -> None:
    """A fir of four tiers, lit from one side; snow lies on it in winter."""
    side = look.side(thing.x)
    paint_shadow(canvas, thing, look, thing.size * 0.46)
    green = {
        "spring": (72, 134, 88),
        "summer": (44, 106, 74),
        "autumn": (70, 108, 70),
        "winter": (92, 130, 132),
    }
    needle = green[look.season]
    canvas.fill(
        thing.points((-0.045, 0.0), (-0.045, 0.2), (0.045, 0.2), (0.045, 0.0)),
        look.lit(scaled(BARK, 0.8), thing.depth),
        Label.TREE,
    )
    wide = 0.21 + 0.06 * thing.form[0]
    for base, reach, tip in ((0.10, 1.0, 0.52), (0.30, 0.82, 0.70), (0.50, 0.62, 0.86), (0.68, 0.42, 1.0)):
        edge = wide * reach
        tier = (
            (-edge, base),
            (-edge * 0.45, base - 0.03),
            (0, base - 0.04),
            (edge * 0.45, base - 0.03),
            (edge, base),
        )
        canvas.fill(thing.points(*tier, (0, tip)), look.lit(scaled(needle, 0.84), thing.depth), Label.TREE)
        half = thing.points(
            (edge, base), (edge * 0.45, base - 0.03), (0.02, base - 0.03), (0, tip), flip=side
        )
        canvas.fill(half, look.lit(scaled(needle, 1.16), thing.depth))
        if look.is_winter:
            low = base + (tip - base) * 0.42
            snow = (
                (-edge * 0.58, low),
                (-edge * 0.2, low - 0.05),
                (edge * 0.1, low),
                (edge * 0.58, low),
                (0, tip),
            )
            canvas.fill(thing.points(*snow), look.lit((240, 246, 254), thing.depth))


def paint_palm(canvas: Canvas, thing: Thing, look: Look) -> None:
    """A palm with a bent trunk and seven broad fronds."""
    form, side = thing.form, look.side(thing.x)
    paint_shadow(canvas, thing, look, thing.size * 0.5)
    lean = 0.16 * (form[0] - 0.5)
    rise = np.linspace(0, 0.74, 7)
    bend = lean * (rise / 0.74) ** 2 * 2
    half = 0.040 - 0.016 * rise / 0.74
    trunk = [*zip(bend - half, rise, strict=True), *zip((bend + half)[::-1], rise[::-1], strict=True)]
    bark = (158, 118, 80)
    canvas.fill(thing.points(*trunk), look.lit(bark, thing.depth), Label.PALM)
    for low in rise[1:-1:1]:
        at = lean * (low / 0.74) ** 2 * 2
        ring = thing.points((at - 0.034, low), (at + 0.034, low))
        canvas.lines([ring], look.lit(scaled(bark, 0.82), thing.depth), thing.size * 0.016)
    green = {
        "spring": (112, 178, 76),
        "summer": (60, 146, 74),
        "autumn": (160, 152, 68),
        "winter": (150, 178, 160),
    }
    leaf = green[look.season]
    top = np.array([bend[-1], 0.74])
    for k in (0, 6, 1, 5, 2, 4, 3):
        angle = np.pi * (-0.08 + 1.16 * k / 6) + 0.25 * (form[k % 5 + 1] - 0.5)
        ahead = np.array([np.cos(angle), 0.72 * np.sin(angle)])
        across = np.array([-ahead[1], ahead[0]])
        reach = 0.34
        droop = np.array([0.0, -0.15])
        spine = [top + ahead * reach * t + droop * t * t for t in (0, 0.35, 0.7, 1.0)]
        frond = [spine[0], spine[1] + across * 0.055, spine[2] + across * 0.04, spine[3]]
        frond += [spine[2] - across * 0.05, spine[1] - across * 0.055]
        tone = 1.16 if np.cos(angle) * side > 0.1 else 0.86
        canvas.fill(thing.points(*frond), look.lit(scaled(leaf, tone), thing.depth), Label.PALM)
    if look.is_winter:
        cap = thing.points((top[0] - 0.1, 0.75), (top[0], 0.80), (top[0] + 0.1, 0.75), (top[0], 0.72))
        canvas.fill(cap, look.lit((244, 248, 254), thing.depth))
