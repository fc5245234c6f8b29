"""Boats, cars and animals."""

from __future__ import annotations

import numpy as np

from controlnet.storybook.scenes.canvas import Canvas, glow
from controlnet.storybook.scenes.ground import paint_shadow
from controlnet.storybook.scenes.labels import Label
from controlnet.storybook.scenes.layout import Thing
from controlnet.storybook.scenes.looks import BOAT_COLOURS, CAR_COLOURS, Colour, Look, scaled
from controlnet.storybook.scenes.shapes import circle, disc

LAMP = (255, 224, 132)
GLASS = (96, 124, 150)


def paint_boat(canvas: Canvas, thing: Thing, look: Look) -> None:
    """A sailing boat; hull and sails share a colour."""
    depth = thing.depth * 0.6
    flip = 1.0 if thing.form[0] < 0.5 else -1.0
    side = look.side(thing.x) * flip
    colour = BOAT_COLOURS[look.boat_colour]
    x, y, size = thing.x, thing.y, thing.size
    canvas.soft(
        glow(), (x - size * 0.5, y - size * 0.06, x + size * 0.5, y + size * 0.20), (20, 44, 70), 0.55
    )
    hull = thing.points((-0.42, 0.20), (-0.30, 0.0), (0.28, 0.0), (0.46, 0.22), flip=flip)
    mast = thing.points((-0.018, 0.2), (-0.012, 1.0), (0.012, 1.0), (0.018, 0.2), flip=flip)
    main = thing.points((0.03, 0.28), (0.03, 0.97), (0.16, 0.70), (0.40, 0.30), flip=flip)
    jib = thing.points((-0.04, 0.28), (-0.04, 0.84), (-0.36, 0.30), flip=flip)
    canvas.fill(main, look.lit(scaled(colour, 1.0 if side > 0 else 0.84), depth), Label.BOAT)
    canvas.fill(jib, look.lit(scaled(colour, 0.84 if side > 0 else 1.0), depth), Label.BOAT)
    canvas.fill(mast, look.lit((120, 84, 60), depth), Label.BOAT)
    canvas.shade(hull, look.lit(colour, depth), look.lit(scaled(colour, 0.70), depth), Label.BOAT)
    rim = thing.points((-0.42, 0.20), (0.46, 0.22), (0.44, 0.17), (-0.395, 0.155), flip=flip)
    canvas.fill(rim, look.lit((240, 226, 200), depth))


def paint_car(canvas: Canvas, thing: Thing, look: Look) -> None:
    """A small car from its side."""
    depth = thing.depth * 0.6
    flip = 1.0 if thing.form[0] < 0.5 else -1.0
    paint_shadow(canvas, thing, look, thing.size * 1.9)
    paint = CAR_COLOURS[look.car_colour]
    body = thing.points(
        (-0.92, 0.16), (-0.93, 0.44), (-0.84, 0.54), (-0.60, 0.58), (-0.40, 0.94), (-0.30, 0.99),
        (0.26, 0.99), (0.36, 0.93), (0.56, 0.58), (0.84, 0.50), (0.93, 0.40), (0.93, 0.16), flip=flip,
    )  # fmt: skip
    canvas.shade(body, look.lit(scaled(paint, 1.06), depth), look.lit(scaled(paint, 0.74), depth), Label.CAR)
    glass = look.lit(GLASS, depth) if not look.is_night else look.lit((150, 150, 150), depth)
    canvas.fill(thing.points((-0.46, 0.60), (-0.31, 0.89), (-0.04, 0.89), (-0.04, 0.60), flip=flip), glass)
    canvas.fill(thing.points((0.06, 0.60), (0.06, 0.89), (0.25, 0.89), (0.42, 0.60), flip=flip), glass)
    for x in (-0.52, 0.54):
        wheel = thing.points(*disc(x, 0.19, 0.20, 0.20), flip=flip)
        canvas.fill(wheel, look.lit((44, 44, 52), depth), Label.CAR)
        canvas.fill(thing.points(*disc(x, 0.19, 0.095, 0.095), flip=flip), look.lit((196, 198, 204), depth))
    lamp = LAMP if look.time != "day" else look.lit((250, 244, 214), depth)
    canvas.fill(thing.points(*disc(0.84, 0.38, 0.075, 0.065), flip=flip), lamp)
    if look.is_night:
        ahead = sorted((thing.x + flip * thing.size * 0.7, thing.x + flip * thing.size * 2.2))
        y = thing.y - thing.size * 0.1
        box = (ahead[0], y - thing.size * 0.3, ahead[1], y + thing.size * 0.3)
        canvas.soft(glow(), box, (255, 224, 150), 0.5, only=Label.ROAD)


def paint_car_behind(canvas: Canvas, thing: Thing, look: Look) -> None:
    """A small car that drives away from us: one broad window, two round lamps, a bumper with its plate."""
    depth = thing.depth * 0.6
    paint_shadow(canvas, thing, look, thing.size * 1.3)
    paint = CAR_COLOURS[look.car_colour]
    for x in (-0.38, 0.38):
        tyre = thing.points((x - 0.13, 0.0), (x - 0.13, 0.26), (x + 0.13, 0.26), (x + 0.13, 0.0))
        canvas.fill(tyre, look.lit((44, 44, 52), depth), Label.CAR)
    body = thing.points(
        (-0.56, 0.16), (-0.57, 0.52), (-0.50, 0.60), (-0.38, 0.94), (-0.28, 0.99), (0.28, 0.99), (0.38, 0.94),
        (0.50, 0.60), (0.57, 0.52), (0.56, 0.16),
    )  # fmt: skip
    canvas.shade(body, look.lit(scaled(paint, 1.06), depth), look.lit(scaled(paint, 0.74), depth), Label.CAR)
    glass = look.lit(GLASS, depth) if not look.is_night else look.lit((150, 150, 150), depth)
    canvas.fill(thing.points((-0.40, 0.62), (-0.30, 0.90), (0.30, 0.90), (0.40, 0.62)), glass)
    bumper = thing.points((-0.56, 0.14), (-0.56, 0.25), (0.56, 0.25), (0.56, 0.14))
    canvas.fill(bumper, look.lit((176, 178, 186), depth))
    lamp: Colour = (255, 92, 70) if look.time != "day" else look.lit((206, 60, 56), depth)
    for x in (-0.41, 0.41):
        canvas.fill(thing.points(*disc(x, 0.42, 0.11, 0.095)), lamp)
    plate = thing.points((-0.17, 0.26), (-0.17, 0.38), (0.17, 0.38), (0.17, 0.26))
    canvas.fill(plate, look.lit((246, 240, 222), depth))


def paint_sheep(canvas: Canvas, thing: Thing, look: Look) -> None:
    """A sheep."""
    depth, flip = thing.depth * 0.6, 1.0 if thing.form[0] < 0.5 else -1.0
    paint_shadow(canvas, thing, look, thing.size * 1.3)
    dark = look.lit((72, 62, 66), depth)
    for x in (-0.34, -0.16, 0.14, 0.32):
        leg = thing.points((x - 0.05, 0.0), (x - 0.05, 0.35), (x + 0.05, 0.35), (x + 0.05, 0.0), flip=flip)
        canvas.fill(leg, dark, Label.ANIMAL)
    angle = circle(28)
    puff = 1 + 0.07 * np.sin(8 * angle)
    wool = list(zip(0.50 * puff * np.cos(angle) - 0.05, 0.58 + 0.33 * puff * np.sin(angle), strict=True))
    canvas.fill(thing.points(*wool, flip=flip), look.lit((214, 202, 190), depth), Label.ANIMAL)
    canvas.fill(thing.points(*disc(-0.07, 0.66, 0.38, 0.21), flip=flip), look.lit((250, 244, 232), depth))
    canvas.fill(thing.points(*disc(0.48, 0.66, 0.15, 0.19), flip=flip), dark, Label.ANIMAL)
    canvas.fill(
        thing.points(*disc(0.42, 0.84, 0.13, 0.08), flip=flip),
        look.lit((250, 244, 232), depth),
        Label.ANIMAL,
    )
    canvas.fill(thing.points(*disc(0.53, 0.70, 0.035, 0.035, 8), flip=flip), look.lit((250, 246, 236), depth))


def paint_cow(canvas: Canvas, thing: Thing, look: Look) -> None:
    """A cow with large patches."""
    depth, flip = thing.depth * 0.6, 1.0 if thing.form[0] < 0.5 else -1.0
    paint_shadow(canvas, thing, look, thing.size * 1.4)
    hide, patch = (
        ((244, 236, 224), (112, 76, 60)) if thing.form[1] < 0.6 else ((176, 116, 78), (238, 222, 200))
    )
    for x in (-0.50, -0.32, 0.24, 0.42):
        leg = thing.points((x - 0.06, 0.0), (x - 0.06, 0.42), (x + 0.06, 0.42), (x + 0.06, 0.0), flip=flip)
        canvas.fill(leg, look.lit(scaled(hide, 0.82), depth), Label.ANIMAL)
    body = (
        (-0.60, 0.40), (-0.62, 0.72), (-0.54, 0.84), (0.40, 0.86), (0.52, 0.76), (0.50, 0.42), (0.30, 0.32),
        (-0.46, 0.32),
    )  # fmt: skip
    canvas.fill(thing.points(*body, flip=flip), look.lit(hide, depth), Label.ANIMAL)
    canvas.fill(thing.points(*disc(-0.28, 0.66, 0.19, 0.15), flip=flip), look.lit(patch, depth))
    canvas.fill(thing.points(*disc(0.22, 0.58, 0.15, 0.18), flip=flip), look.lit(patch, depth))
    head = ((0.44, 0.98), (0.40, 0.74), (0.54, 0.58), (0.74, 0.56), (0.78, 0.68), (0.66, 0.96))
    canvas.fill(thing.points(*head, flip=flip), look.lit(hide, depth), Label.ANIMAL)
    muzzle = ((0.60, 0.58), (0.74, 0.56), (0.78, 0.68), (0.68, 0.72))
    canvas.fill(thing.points(*muzzle, flip=flip), look.lit((224, 168, 156), depth))
    canvas.fill(thing.points(*disc(0.46, 0.92, 0.08, 0.05), flip=flip), look.lit(patch, depth), Label.ANIMAL)
    canvas.fill(thing.points(*disc(0.57, 0.82, 0.035, 0.035, 8), flip=flip), look.lit((52, 40, 40), depth))
