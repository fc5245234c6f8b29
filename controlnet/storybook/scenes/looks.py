"""How a scene looks: hour, season, weather and the colours of house, car and boat. Never where anything is.

Light is a colour that multiplies, distance is a haze that covers. Both act on the few colours of a shape
before it is painted, not on pixels, so that a look costs nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

Colour = tuple[int, int, int]

TIMES = ("day", "sunset", "night")
SEASONS = ("spring", "summer", "autumn", "winter")
WEATHERS = ("clear", "cloudy", "rain", "snow", "fog")

HOUSE_COLOURS: dict[str, Colour] = {
    "red": (206, 66, 56),
    "yellow": (244, 202, 84),
    "green": (66, 150, 104),
    "blue": (66, 122, 206),
    "purple": (150, 96, 184),
    "white": (246, 242, 234),
}
CAR_COLOURS: dict[str, Colour] = {
    "red": (214, 44, 44),
    "yellow": (250, 204, 50),
    "green": (48, 146, 84),
    "blue": (44, 100, 212),
    "white": (248, 246, 242),
}
BOAT_COLOURS = CAR_COLOURS

# What a white sheet looks like, and the haze that far things sink into.
LIGHT: dict[str, tuple[float, float, float]] = {
    "day": (1.0, 1.0, 1.0),
    "sunset": (1.0, 0.82, 0.73),
    "night": (0.50, 0.56, 0.78),
}
HAZE: dict[str, Colour] = {"day": (206, 226, 240), "sunset": (248, 190, 150), "night": (60, 76, 124)}

# Top, middle and bottom of a clear sky, and of one that is wholly covered.
CLEAR_SKY: dict[str, tuple[Colour, Colour, Colour]] = {
    "day": ((72, 150, 224), (136, 198, 242), (218, 239, 249)),
    "sunset": ((112, 88, 156), (240, 132, 104), (255, 208, 132)),
    "night": ((14, 20, 58), (30, 44, 100), (70, 88, 146)),
}
COVERED_SKY: dict[str, tuple[Colour, Colour, Colour]] = {
    "day": ((152, 170, 188), (190, 203, 214), (220, 227, 232)),
    "sunset": ((128, 94, 122), (214, 130, 112), (246, 186, 140)),
    "night": ((24, 30, 56), (42, 52, 88), (66, 78, 118)),
}

# How much of the sky is covered, how bright the day still is, how thick the haze.
COVER = {"clear": 0.0, "cloudy": 0.8, "rain": 1.0, "snow": 0.9, "fog": 0.75}
BRIGHTNESS = {"clear": 1.0, "cloudy": 0.94, "rain": 0.84, "snow": 0.97, "fog": 0.96}
HAZINESS = {"clear": 0.55, "cloudy": 0.7, "rain": 1.0, "snow": 1.0, "fog": 1.7}

GRASS: dict[str, Colour] = {
    "spring": (162, 214, 92),
    "summer": (72, 150, 58),
    "autumn": (202, 158, 66),
    "winter": (236, 242, 250),
}
# Crowns of leafy trees: a season has a few colours, all of one kind.
LEAVES: dict[str, tuple[Colour, ...]] = {
    "spring": ((246, 170, 192), (250, 204, 214), (148, 200, 84)),
    "summer": ((54, 128, 52), (78, 144, 50), (40, 112, 66)),
    "autumn": ((222, 108, 40), (232, 156, 44), (190, 64, 42)),
    "winter": ((214, 224, 238), (226, 234, 244), (204, 214, 232)),
}


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """``first`` with ``share`` (0 to 1) of ``second`` stirred in."""
    (red, green, blue), (to_red, to_green, to_blue) = first, second
    return (
        round(red + (to_red - red) * share),
        round(green + (to_green - green) * share),
        round(blue + (to_blue - blue) * share),
    )


def scaled(colour: Colour, factor: float) -> Colour:
    """``colour`` made darker or lighter by ``factor``, 255 at most."""
    red, green, blue = colour
    return min(255, round(red * factor)), min(255, round(green * factor)), min(255, round(blue * factor))


@dataclass(frozen=True)
class Look:
    """Everything about a scene that its map does not tell.

    ``sun_x`` and ``sun_y`` (0 to 1, from the upper left corner) place sun or moon in the sky; ``seed`` feeds
    the small
    things that nobody names: clouds, stars, flakes, and which of its season's colours a tree wears.
    """

    time: str = "day"
    season: str = "summer"
    weather: str = "clear"
    house_colour: str = "red"
    car_colour: str = "red"
    boat_colour: str = "white"
    sun_x: float = 0.75
    sun_y: float = 0.16
    seed: int = 0

    def __post_init__(self) -> None:
        known = {
            "time": TIMES,
            "season": SEASONS,
            "weather": WEATHERS,
            "house_colour": HOUSE_COLOURS,
            "car_colour": CAR_COLOURS,
            "boat_colour": BOAT_COLOURS,
        }
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; one of {', '.join(choices)} is wanted.")

    @property
    def is_night(self) -> bool:
        return self.time == "night"

    @property
    def is_winter(self) -> bool:
        return self.season == "winter"

    @cached_property
    def light(self) -> tuple[float, float, float]:
        """Factors for red, green and blue that the hour and the weather leave of a colour."""
        red, green, blue = (factor * BRIGHTNESS[self.weather] for factor in LIGHT[self.time])
        return red, green, blue

    @cached_property
    def haze(self) -> Colour:
        """The colour of far air: that of the sky above the horizon."""
        clear = HAZE[self.time]
        return mix(clear, COVERED_SKY[self.time][2], COVER[self.weather])

    def lit(self, colour: Colour, depth: float = 0.0) -> Colour:
        """``colour`` under this light, ``depth`` (0 near, 1 at the horizon) away."""
        red, green, blue = self.light
        veil = 1.0 - math.exp(-HAZINESS[self.weather] * depth * depth)
        haze = self.haze
        return (
            int(colour[0] * red + (haze[0] - colour[0] * red) * veil),
            int(colour[1] * green + (haze[1] - colour[1] * green) * veil),
            int(colour[2] * blue + (haze[2] - colour[2] * blue) * veil),
        )

    @cached_property
    def sky(self) -> tuple[Colour, Colour, Colour]:
        """Top, middle and bottom of the sky."""
        covered = COVER[self.weather]
        pairs = zip(CLEAR_SKY[self.time], COVERED_SKY[self.time], strict=True)
        factor = 0.5 + 0.5 * BRIGHTNESS[self.weather]
        top, middle, bottom = (scaled(mix(clear, grey, covered), factor) for clear, grey in pairs)
        return top, middle, bottom

    def side(self, x: float) -> float:
        """1.0 if the light falls on something at ``x`` from the right, -1.0 if from the left."""
        return 1.0 if self.sun_x >= x else -1.0


def random_look(rng: np.random.Generator) -> Look:
    """Draw a look: every hour and season alike often, half of the weather clear; snow falls in winter
    only.
    """
    season = str(rng.choice(SEASONS))
    wet = "snow" if season == "winter" else "rain"
    weather = str(rng.choice(("clear", "cloudy", wet, "fog"), p=(0.52, 0.2, 0.16, 0.12)))
    return Look(
        time=str(rng.choice(TIMES)),
        season=season,
        weather=weather,
        house_colour=str(rng.choice(list(HOUSE_COLOURS))),
        car_colour=str(rng.choice(list(CAR_COLOURS))),
        boat_colour=str(rng.choice(list(BOAT_COLOURS))),
        sun_x=float(rng.uniform(0.12, 0.88)),
        sun_y=float(rng.uniform(0.08, 0.24)),
        seed=int(rng.integers(2**31)),
    )
