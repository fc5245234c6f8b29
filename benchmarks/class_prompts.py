"""What prompts for classes cost a step: python -m benchmarks.class_prompts --classes 3

Steps with and without them take turns in one process; the processor time of each is compared, so that other
work on the machine hardly counts. The map is a drawn scene's.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from typing import Any

import torch

from controlnet.generation.class_prompts import held_classes
from controlnet.generation.generator import Generator
from controlnet.generation.loading import load_generator
from controlnet.generation.options import add_model_arguments, files_from_options
from controlnet.generation.request import Request
from controlnet.storybook.dataset import HELD_OUT_SEED, draw_scene


def seconds_of_steps(generator: Generator, steps: int, **asked: Any) -> list[float]:
    """Processor seconds of each step of a run but the first two, which lay weights out anew."""
    marks: list[float] = []
    request = Request(None, "a landscape by day", seed=1, ddim_steps=steps, **asked)
    generator.generate(request, on_step=lambda _: marks.append(time.process_time()))
    return [after - before for before, after in itertools.pairwise(marks[1:])]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.set_defaults(model="tiny")
    parser.add_argument("--classes", type=int, default=3, help="how many have a prompt (default 3)")
    parser.add_argument("--steps", type=int, default=20, help="of each run (default 20)")
    parser.add_argument("--turns", type=int, default=4, help="runs of each kind (default 4)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = load_generator(files_from_options(options), options.device, options.precision)
    labels = draw_scene(HELD_OUT_SEED, generator.resolution).labels
    prompts = dict.fromkeys(held_classes(labels)[: options.classes], "a red house")
    times: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(options.turns):
        times["without"] += seconds_of_steps(generator, options.steps, hint=labels)
        times["with"] += seconds_of_steps(generator, options.steps, hint=labels, class_prompts=prompts)
    middle = {name: statistics.median(seconds) for name, seconds in times.items()}
    print(f"without {middle['without']:.4f} s, with {len(prompts)} classes {middle['with']:.4f} s a step")
    print(f"{middle['with'] / middle['without'] - 1:+.1%}")


if __name__ == "__main__":
    main()
