"""The classes of the storybook world, by their ADE20K index."""

from __future__ import annotations

from enum import IntEnum


class Label(IntEnum):
    """Index of a class in ``annotator.ade20k.CLASSES``."""

    BUILDING = 1
    SKY = 2
    TREE = 4
    ROAD = 6
    GRASS = 9
    PERSON = 12
    EARTH = 13
    MOUNTAIN = 16
    CAR = 20
    HOUSE = 25
    SEA = 26
    FIELD = 29
    FENCE = 32
    SAND = 46
    PATH = 52
    RIVER = 60
    BRIDGE = 61
    FLOWER = 66
    HILL = 68
    PALM = 72
    BOAT = 76
    TOWER = 84
    ANIMAL = 126
    LAKE = 128


WATERS = (Label.SEA, Label.RIVER, Label.LAKE)
