"""Draw the tutorial's data set: outlines of circles, to be filled as the prompt says.

    python -m controlnet.training.make_fill50k training/fill50k --count 50000

The layout is that of the original's fill50k: ``source/N.png`` (a white outline on black), ``target/N.png``
(the filled circle) and ``prompt.json``. Picture N depends on (seed, N) alone.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import ImageColor
from tqdm import tqdm

from ldm.atomic import atomic_write

COLOR_NAMES = """
alice blue|antique white|aqua|aquamarine|azure|beige|bisque|black|blanched almond|blue|blue violet|brown|
burly wood|cadet blue|chartreuse|chocolate|coral|cornflower blue|cornsilk|crimson|dark blue|dark cyan|
dark golden rod|dark gray|dark green|dark khaki|dark magenta|dark olive green|dark orange|dark orchid|
dark red|dark salmon|dark sea green|dark slate blue|dark slate gray|dark turquoise|dark violet|deep pink|
deep sky blue|dim gray|dodger blue|fire brick|floral white|forest green|gainsboro|ghost white|gold|
golden rod|gray|green|green yellow|honey dew|hot pink|indian red|indigo|ivory|khaki|lavender|
lavender blush|lawn green|lemon chiffon|light blue|light coral|light cyan|light golden rod yellow|
light gray|light green|light pink|light salmon|light sea green|light sky blue|light slate gray|
light steel blue|light yellow|lime|lime green|linen|magenta|maroon|medium aqua marine|medium blue|
medium orchid|medium purple|medium sea green|medium slate blue|medium spring green|medium turquoise|
medium violet red|midnight blue|mint cream|misty rose|moccasin|navajo white|navy|old lace|olive|
olive drab|orange|orange red|orchid|pale golden rod|pale green|pale turquoise|pale violet red|papaya whip|
peach puff|peru|pink|plum|powder blue|purple|rebecca purple|red|rosy brown|royal blue|saddle brown|salmon|
sandy brown|sea green|sea shell|sienna|silver|sky blue|slate blue|slate gray|snow|spring green|steel blue|
tan|teal|thistle|tomato|turquoise|violet|wheat|white|white smoke|yellow|yellow green
""".replace("\n", "").split("|")
"""The named colours of CSS with their words apart, each colour once."""


def draw_example(number: int, size: int = 512, seed: int = 0) -> tuple[np.ndarray, np.ndarray, str]:
    """One example.

    Args:
        number: which one.
        size: side in pixels.
        seed: of the whole set.

    Returns:
        hint uint8 ``[size, size, 3]``, picture uint8 RGB ``[size, size, 3]``, prompt.
    """
    random = np.random.default_rng([seed, number])
    circle, background = random.choice(len(COLOR_NAMES), size=2, replace=False)
    radius = int(random.integers(size // 16, size * 3 // 8 + 1))
    x, y = (int(place) for place in random.integers(radius, size - radius, size=2))

    hint = np.zeros((size, size, 3), np.uint8)
    cv2.circle(hint, (x, y), radius, (255, 255, 255), max(1, size // 256), cv2.LINE_AA)
    picture = np.full((size, size, 3), _rgb(background), np.uint8)
    cv2.circle(picture, (x, y), radius, _rgb(circle), cv2.FILLED, cv2.LINE_AA)
    return hint, picture, f"{COLOR_NAMES[circle]} circle with {COLOR_NAMES[background]} background"


def _rgb(name: int) -> tuple[int, ...]:
    return ImageColor.getrgb(COLOR_NAMES[name].replace(" ", ""))


def _write_example(number: int, folder: Path, size: int, seed: int) -> str:
    """Write the two pictures and return the line for prompt.json."""
    hint, picture, prompt = draw_example(number, size, seed)
    for kind, rgb in {"source": hint, "target": picture}.items():
        path = folder / kind / f"{number}.png"
        if not cv2.imwrite(str(path), rgb[:, :, ::-1]):
            raise OSError(f"{path} cannot be written: is the disk full?")
    row = {"source": f"source/{number}.png", "target": f"target/{number}.png", "prompt": prompt}
    return json.dumps(row) + "\n"


def make_fill50k(
    folder: str | Path,
    count: int = 50_000,
    *,
    size: int = 512,
    seed: int = 0,
    workers: int | None = None,
    force: bool = False,
    progress: bool = True,
) -> None:
    """Draw the data set into ``folder``. ``prompt.json`` comes last, so a set without it was interrupted.

    Args:
        count: number of examples.
        size: side of the pictures in pixels.
        seed: of the whole set.
        workers: threads, one per core by default; the result does not depend on them.
        force: replace a set that is there already.

    Raises:
        FileExistsError: ``folder`` holds a set already.
        ValueError: no examples, or pictures too small to hold a circle.
    """
    if count < 1 or size < 16:
        raise ValueError(f"At least 1 example of at least 16 pixels is wanted, got {count} of {size}.")
    folder = Path(folder)
    prompts = folder / "prompt.json"
    if prompts.exists():
        if not force:
            raise FileExistsError(f"{prompts} is there already; --force draws the set anew.")
        prompts.unlink()
    for kind in ("source", "target"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    write = partial(_write_example, folder=folder, size=size, seed=seed)
    with ThreadPoolExecutor(
        workers or os.cpu_count()
    ) as pool:  # drawing and packing release the interpreter's lock
        written = pool.map(write, range(count))
        lines = list(tqdm(written, total=count, desc=f"Drawing {folder}", disable=not progress))
    with atomic_write(prompts) as unfinished:
        unfinished.write_text("".join(lines), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw the tutorial's data set of circles.")
    parser.add_argument("folder", metavar="OUT", help="folder to draw into")
    parser.add_argument("--count", type=int, default=50_000, help="number of examples (%(default)s)")
    parser.add_argument("--size", type=int, default=512, help="side of the pictures in pixels (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws another set (%(default)s)")
    parser.add_argument("--workers", type=int, help="threads (one per core)")
    parser.add_argument("--force", action="store_true", help="replace a set that is there already")
    options = parser.parse_args(arguments)
    try:
        make_fill50k(**vars(options))
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
