"""Words for a scene, and back: varied English prompts, and what a prompt asks for.

A prompt names only what is there. What it leaves out differs each time, so that any share of the words works.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

TIME_WORDS: dict[str, tuple[str, ...]] = {
    "day": ("by day", "in daylight", "during the day", "daytime", "at noon", "in broad daylight"),
    "sunset": ("at sunset", "at dusk", "in the evening", "sunset", "under a setting sun", "at golden hour"),
    "night": ("at night", "by night", "night", "after dark", "nighttime", "in the moonlight"),
}
SEASON_WORDS: dict[str, tuple[str, ...]] = {
    "spring": ("in spring", "spring", "springtime", "on a spring day", "a fresh green spring"),
    "summer": ("in summer", "summer", "summertime", "in high summer", "a lush green summer"),
    "autumn": ("in autumn", "autumn", "in the fall", "autumn colors", "golden autumn"),
    "winter": ("in winter", "winter", "wintertime", "covered in snow", "a snowy winter"),
}
TREE_WORDS: dict[str, tuple[str, ...]] = {
    "spring": ("blossoming spring trees", "trees in spring blossom"),
    "summer": ("green summer trees", "leafy summer trees"),
    "autumn": ("autumn trees", "trees with autumn leaves", "orange autumn trees"),
    "winter": ("snowy winter trees", "snow-covered winter trees"),
}
WEATHER_WORDS: dict[str, tuple[str, ...]] = {
    "clear": ("clear sky", "a clear sky", "fine weather", "clear weather"),
    "cloudy": ("cloudy", "overcast", "a cloudy sky", "under heavy clouds"),
    "rain": ("in the rain", "rain", "rainy weather", "it is raining"),
    "snow": ("snowfall", "falling snow", "it is snowing", "snowflakes in the air"),
    "fog": ("in the fog", "fog", "misty", "in the mist", "foggy"),
}
PLACE_WORDS: dict[str, tuple[str, ...]] = {
    "coast": ("by the sea", "on the coast", "at the seaside", "at the beach"),
    "lake": ("by a lake", "at a lake", "on the shore of a lake", "lakeside"),
    "river": ("by a river", "along a river", "at the river", "riverside"),
    "farm": ("in the countryside", "on a farm", "in the country", "farmland"),
    "town": ("in a town", "in a small town", "on a street", "in the town"),
}
NOUNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "house": (("house", "cottage", "home"), ("houses", "cottages")),
    "car": (("car",), ("cars",)),
    "boat": (("boat", "sailing boat", "sailboat"), ("boats", "sailing boats", "sailboats")),
    "building": (("building", "apartment building"), ("buildings", "town buildings")),
    "tower": (("tower", "lighthouse"), ("towers",)),
    "bridge": (("bridge", "stone bridge"), ("bridges",)),
    "fence": (("fence", "wooden fence"), ("fences",)),
    "person": (("person", "walker"), ("people",)),
    "sheep": (("sheep",), ("sheep",)),
    "cow": (("cow",), ("cows",)),
    "tree": (("tree",), ("trees",)),
    "palm": (("palm", "palm tree"), ("palms", "palm trees")),
    "flower": (("flower bed",), ("flowers", "flower beds")),
    "mountain": (("mountain",), ("mountains", "snowy peaks")),
    "hill": (("row of hills",), ("hills", "rolling hills")),
    "field": (("field", "plowed field"), ("fields",)),
    "road": (("road",), ("roads",)),
    "path": (("path", "winding path"), ("paths",)),
}
SPOKEN: dict[str, tuple[Mapping[str, tuple[str, ...]], float, dict[str, float]]] = {
    "time": (TIME_WORDS, 0.97, {"day": 0.5}),
    "season": (SEASON_WORDS, 0.75, {}),
    "weather": (WEATHER_WORDS, 0.9, {"clear": 0.35}),
}
"""How often each is spoken of, and what is usual less often: so silence comes to mean day and a clear sky."""
COLOURED = ("house", "car", "boat")
_MASSES = ("tree", "flower", "mountain", "hill")  # spoken of in the plural whatever their number
_PREPOSITIONS = ("by", "in", "at", "on", "during", "after", "under")
OPENINGS = ("a picture of ", "an illustration of ", "a landscape with ", "a scene with ")
PRAISE = (", best quality", ", best quality, extremely detailed", ", detailed", ", beautiful")


def describe(
    rng: np.random.Generator, place: str, counts: Mapping[str, int], attributes: Mapping[str, str | None]
) -> str:
    """Write a prompt.

    Args:
        rng: decides wording, order and omissions.
        place: a key of ``PLACE_WORDS``.
        counts: how many of each kind (keys of ``NOUNS``) are to be seen.
        attributes: ``time``, ``season``, ``weather``, and the colours of ``house``, ``car`` and ``boat``;
            None for what cannot be told from the picture.
    """
    if rng.random() < 0.08:
        return ""
    subjects = [kind for kind in COLOURED if counts.get(kind) and rng.random() < 0.85]
    extras = [kind for kind in NOUNS if kind not in COLOURED and counts.get(kind) and rng.random() < 0.30]
    things = [
        _noun(rng, kind, counts[kind], attributes.get(kind))
        for kind in [*_shuffled(rng, subjects), *extras[:3]]
    ]
    where = [_pick(rng, PLACE_WORDS[place])] if rng.random() < 0.6 else []
    how = [
        _pick(rng, words[value])
        for name, (words, share, usual) in SPOKEN.items()
        if (value := attributes.get(name)) and rng.random() < usual.get(value, share)
    ]
    if counts.get("tree") and (season := attributes.get("season")) and rng.random() < 0.2:
        how.append(_pick(rng, TREE_WORDS[season]))
    style = rng.random()
    if style < 0.45:  # a sentence: things, place, then how it looks
        joins = bool(how) and how[0].split()[0] in _PREPOSITIONS
        text = " ".join([_enumerate(things) or "a landscape", *where, *how[:joins]])
        text = ", ".join([text, *_shuffled(rng, how[joins:])])
        if things and rng.random() < 0.25:
            text = _pick(rng, OPENINGS) + text
    else:  # tags in any order
        text = ", ".join(_shuffled(rng, [*things, *where, *how])) or "a landscape"
    if rng.random() < 0.25:
        text += _pick(rng, PRAISE)
    return text


def named_in(prompt: str) -> dict[str, str]:
    """What a prompt asks for, of what :func:`controlnet.storybook.scenes.judge.judge` can see: time, season,
    colours.
    """
    text = prompt.lower()
    named = {}
    for name, patterns in _PATTERNS.items():
        found = {value for value, pattern in patterns.items() if re.search(pattern, text)}
        if len(found) == 1:
            named[name] = found.pop()
    for kind in COLOURED:
        nouns = "|".join(word for words in NOUNS[kind] for word in words)
        found = set(re.findall(rf"\b(red|yellow|green|blue|purple|white) (?:{nouns})\b", text))
        if len(found) == 1:
            named[kind] = found.pop()
    return named


_PATTERNS: dict[str, dict[str, str]] = {
    "time": {
        "day": r"\b(by day|daylight|during the day|daytime|noon)\b",
        "sunset": r"\b(sunset|dusk|evening|setting sun|golden hour)\b",
        "night": r"\b(night|nighttime|after dark|moonlight)\b",
    },
    "season": {
        "spring": r"\b(spring|springtime)\b",
        "summer": r"\b(summer|summertime)\b",
        "autumn": r"\b(autumn|in the fall)\b",
        "winter": r"\b(winter|wintertime|covered in snow)\b",
    },
}


def _noun(rng: np.random.Generator, kind: str, count: int, colour: str | None) -> str:
    one, many = NOUNS[kind]
    colour = f"{colour} " if colour and rng.random() < 0.85 else ""
    if count == 1 and kind not in _MASSES:
        phrase = colour + _pick(rng, one)
        return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"
    number = "two " if count == 2 and kind not in _MASSES and rng.random() < 0.5 else ""
    return number + colour + _pick(rng, many)


def _enumerate(things: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(things[:-1]), *things[-1:]]))


def _pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _shuffled(rng: np.random.Generator, items: Sequence[str]) -> list[str]:
    return [items[k] for k in rng.permutation(len(items))]
