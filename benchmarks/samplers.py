"""What each sampler makes of few steps: python -m benchmarks.samplers --samplers ddim unipc --steps 4 6 8

Pictures of drawn scenes by the embedded model, with the same noise for each row: how well they keep to their
maps (`control_ratio`) and prompts (`prompt_accuracy`), and the processor time of a picture. A line of the
table is written as soon as it is known. `tool_evaluate.py --sampler NAME --steps N` measures the same, and
more.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product

import torch

from annotator.uniformer import SegmentationDetector
from benchmarks.measure import cpu_seconds, interleaved, machine, median
from cldm.cldm import ControlLDM
from controlnet.evaluate.evaluation import Case, Sampling, batches_of, detector_score, generate, prompt_scores
from controlnet.evaluate.scores import MeanIoU
from controlnet.generation.loading import load_generator
from controlnet.generation.models import known_models
from controlnet.generation.samplers import FAST, SAMPLERS, USUAL
from controlnet.storybook.cases import draw_cases
from controlnet.storybook.dataset import HELD_OUT_SEED


def scores_of(
    model: ControlLDM, detector: SegmentationDetector, cases: Sequence[Case], sampling: Sampling
) -> tuple[float, float | None, float]:
    """mIoU of the pictures' maps with those that were asked for, the prompt's accuracy, seconds a picture."""
    kept, agreements, spent = MeanIoU(), [], 0.0
    for batch in batches_of(cases, sampling.batch_size):
        chosen, pictures = [cases[index] for index in batch], []
        spent += cpu_seconds(lambda c=chosen, p=pictures, b=batch: p.extend(generate(model, c, b, sampling)))
        for case, picture in zip(chosen, pictures, strict=True):
            kept.update(detector.labels(picture), case.labels)
            agreements.append(case.agreement(picture))
    return float(kept.compute()), prompt_scores(agreements)["prompt_accuracy"], spent / len(cases)


def compare_times(model: ControlLDM, case: Case, scale: float, interval: tuple[float, float]) -> None:
    """The usual sampling against the fast one, a picture alone, in turns."""
    sides = {
        name: Sampling(speed.steps, scale, sampler=speed.sampler, guidance_interval=part)
        for name, speed, part in (("usual", USUAL, (0.0, 1.0)), ("fast", FAST, interval))
    }
    generate(model, [case], [0], Sampling(1, scale, sampler=FAST.sampler))  # imports, warms up
    times = interleaved(
        {
            name: lambda s=sampling: cpu_seconds(lambda: generate(model, [case], [0], s))
            for name, sampling in sides.items()
        },
        repeats=3,
    )
    usual, fast = median(times["usual"]), median(times["fast"])
    print(f"{USUAL.title} {usual:.2f} s, {FAST.title} {fast:.2f} s a picture: {usual / fast:.2f} x less time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=list(SAMPLERS))
    parser.add_argument("--steps", nargs="+", type=int, default=[4, 6, 8, 10, 15, 20])
    parser.add_argument("--guidance", nargs=2, type=float, default=[0.0, 1.0], metavar=("START", "END"))
    parser.add_argument("--count", type=int, default=12, help="scenes (default 12)")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--times", action="store_true", help="only the times of fast and usual, in turns")
    options = parser.parse_args()
    torch.set_num_threads(1)  # so that processor time is that of the work, not of threads that wait
    files = known_models()["tiny"]
    generator = load_generator(files, "cpu", options.precision)
    model, detector = generator.model, generator.condition("seg").detector
    cases = draw_cases(options.count, HELD_OUT_SEED, generator.resolution)
    interval = (options.guidance[0], options.guidance[1])
    print(f"{machine(torch.device('cpu'))}, precision {options.precision}, {options.count} scenes")
    if options.times:
        compare_times(model, cases[0], files.guidance, interval)
        return
    best = detector_score(detector, cases)["detector_miou"]
    print("sampler          steps  control_ratio  prompt_accuracy  seconds")
    for steps, name in product(options.steps, options.samplers):
        sampling = Sampling(steps, files.guidance, sampler=name, guidance_interval=interval)
        score, agreement, seconds = scores_of(model, detector, cases, sampling)
        told = "-" if agreement is None else f"{agreement:.3f}"
        print(f"{name:16} {steps:5}  {score / best:13.3f}  {told:>15}  {seconds:7.2f}", flush=True)


if __name__ == "__main__":
    main()
