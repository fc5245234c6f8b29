"""People with joints: one pose gives their outline, and the keypoints that a pose detector should find."""

from __future__ import annotations

import numpy as np

from controlnet.storybook.scenes.canvas import Canvas
from controlnet.storybook.scenes.ground import paint_shadow
from controlnet.storybook.scenes.labels import Label
from controlnet.storybook.scenes.layout import Thing
from controlnet.storybook.scenes.looks import Colour, Look, mix, scaled
from controlnet.storybook.scenes.shapes import capsule, disc

COATS: tuple[Colour, ...] = ((222, 84, 72), (64, 112, 190), (240, 190, 70), (92, 150, 96), (166, 92, 160))
TROUSERS: tuple[Colour, ...] = ((58, 62, 96), (96, 72, 60), (74, 84, 92))

# Angles from straight down, outwards positive, in degrees: upper and lower right arm, those of the left arm,
# then the same of the legs; right and left as the person has them.
POSES: tuple[tuple[float, ...], ...] = (
    (18, 10, 18, 10, 8, 6, 8, 6),  # standing
    (34, 20, 24, 14, 22, 10, 20, 26),  # walking
    (150, 168, 20, 12, 10, 6, 10, 6),  # waving with the right hand
    (20, 12, 150, 168, 10, 6, 10, 6),  # and with the left one
    (46, -42, 46, -42, 12, 10, 12, 10),  # hands on the hips
    (138, 156, 138, 156, 16, 12, 16, 12),  # cheering
    (82, 84, 26, 14, 10, 8, 10, 8),  # pointing
)
ARM, LEG = (0.15, 0.14), (0.19, 0.18)  # lengths of upper and lower limbs, in heights of the person
SHOULDER, HIP, HEAD = (0.105, 0.735), (0.062, 0.41), (0.0, 0.885)


def joints(thing: Thing) -> np.ndarray:
    """The 18 keypoints of a person in the order of OpenPose's COCO body, float64 ``[18, 2]``, in the picture.

    Nose, neck, right shoulder, elbow and wrist, the left ones, right hip, knee and ankle, the left ones, both
    eyes, both ears. People face us, so their right side is on the left of the picture.
    """
    pose = np.radians(POSES[int(thing.form[3] * len(POSES))]) + 0.12 * (thing.form[4:12] - 0.5)
    limbs = []
    for first, lengths, (x, y) in ((0, ARM, SHOULDER), (4, LEG, HIP)):
        for number, side in ((first, -1.0), (first + 2, 1.0)):
            chain = [np.array([side * x, y])]
            for angle, length in zip(pose[number : number + 2], lengths, strict=True):
                chain.append(chain[-1] + length * np.array([side * np.sin(angle), -np.cos(angle)]))
            limbs.append(chain)
    right_arm, left_arm, right_leg, left_leg = limbs
    x, y = HEAD
    face = [(x - 0.035, y + 0.02), (x + 0.035, y + 0.02), (x - 0.09, y), (x + 0.09, y)]
    body: list[tuple[float, float] | np.ndarray] = [
        (x, y - 0.015),
        (0.0, SHOULDER[1] + 0.03),
        *right_arm,
        *left_arm,
        *right_leg,
        *left_leg,
        *face,
    ]
    return thing.points(*body)


def paint_person(canvas: Canvas, thing: Thing, look: Look) -> None:
    """A person in a coat and trousers, in one of a few poses; a woolly hat in winter."""
    depth, form = thing.depth * 0.6, thing.form
    paint_shadow(canvas, thing, look, thing.size * 0.5)
    coat = COATS[int((form[0] + look.seed % 89 / 89) % 1.0 * len(COATS))]
    trousers = TROUSERS[int(form[2] * len(TROUSERS))]
    skin = mix((250, 214, 184), (132, 88, 64), float(form[1]))
    points = joints(thing)
    arms, legs, size = points[2:8].reshape(2, 3, 2), points[8:14].reshape(2, 3, 2), thing.size
    shaded = 0 if look.side(thing.x) > 0 else 1  # the limbs away from the light
    for number, (hip, knee, ankle) in enumerate(legs):
        tone = look.lit(scaled(trousers, 0.84 if number == shaded else 1.08), depth)
        canvas.fill(capsule(hip, knee, 0.062 * size, 0.052 * size), tone, Label.PERSON)
        canvas.fill(capsule(knee, ankle, 0.052 * size, 0.045 * size), tone, Label.PERSON)
        toe = ankle + np.array([0.035 * size * (1 if number else -1), 0.012 * size])
        canvas.fill(
            capsule(ankle, toe, 0.042 * size, 0.036 * size), look.lit((50, 42, 46), depth), Label.PERSON
        )
    for number, (shoulder, elbow, wrist) in enumerate(arms):
        tone = look.lit(scaled(coat, 0.72 if number == shaded else 0.92), depth)
        canvas.fill(capsule(shoulder, elbow, 0.048 * size, 0.042 * size), tone, Label.PERSON)
        canvas.fill(capsule(elbow, wrist, 0.042 * size, 0.036 * size), tone, Label.PERSON)
        hand = disc(wrist[0], wrist[1], 0.042 * size, 0.042 * size, 10)
        canvas.fill(np.array(hand), look.lit(skin, depth), Label.PERSON)
    _paint_trunk(canvas, thing, look, coat)
    _paint_head(canvas, thing, look, skin, coat)


def _paint_trunk(canvas: Canvas, thing: Thing, look: Look, coat: Colour) -> None:
    depth, side = thing.depth * 0.6, look.side(thing.x)
    half = ((0.0, 0.79), (0.06, 0.785), (0.135, 0.75), (0.125, 0.56), (0.15, 0.36), (0.0, 0.34))
    body = [*half, *((-x, y) for x, y in half[::-1])]
    canvas.fill(thing.points(*body), look.lit(coat, depth), Label.PERSON)
    shade = ((0.03, 0.35), (0.03, 0.78), *half[1:-1])
    canvas.fill(thing.points(*shade, flip=-side), look.lit(scaled(coat, 0.80), depth))


def _paint_head(canvas: Canvas, thing: Thing, look: Look, skin: Colour, hat: Colour) -> None:
    depth, (x, y) = thing.depth * 0.6, HEAD
    canvas.fill(thing.points(*disc(x, y, 0.10, 0.11)), look.lit(skin, depth), Label.PERSON)
    hair = mix((70, 48, 40), (220, 176, 104), float(thing.form[2]))
    crown = [point for point in disc(x, y + 0.01, 0.112, 0.115, 20) if point[1] > y + 0.015]
    canvas.fill(thing.points(*crown), look.lit(hat if look.is_winter else hair, depth), Label.PERSON)
