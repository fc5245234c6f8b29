"""One training step of ControlNet at SD 1.5 size: the ways to save time and memory, against what the original
does.

    python -m benchmarks.train_step --size 256 --device cpu

One model of random weights (no layer left at zero) takes the same batch in every way, with the same noise and
AdamW over the control copy. The original locks Stable Diffusion by not giving its weights to the optimizer:
gradients are computed for the UNet's decoder all the same, and all activations are computed twice; its AdamW
is torch's default, ours the fused one. The gradients of the control copy must agree before anything is timed.
The ways take turns in one process; the median counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import interleaved, machine, median, peak_memory, seconds
from cldm.cldm import ControlLDM
from cldm.model import create_model
from controlnet.training.run import set_checkpointing

CONFIG = Path(__file__).resolve().parent.parent / "models" / "cldm_v15.yaml"
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Way:
    """How a step is done.

    Attributes:
        frozen: no gradients for what is not trained.
        checkpointing: whose activations are computed again; see `controlnet.training.run.set_checkpointing`.
        cached: VAE and text encoder ran before.
        fused: torch's fused AdamW instead of its default.
    """

    frozen: bool
    checkpointing: str
    cached: bool = False
    fused: bool = True


BASELINE = "as the original"
WAYS = {
    BASELINE: Way(frozen=False, checkpointing="all", fused=False),
    "as the original, fused AdamW": Way(frozen=False, checkpointing="all"),
    "frozen, all checkpointed": Way(frozen=True, checkpointing="all"),
    "frozen, control checkpointed": Way(frozen=True, checkpointing="control"),
    "frozen": Way(frozen=True, checkpointing="none"),
    "frozen, cached": Way(frozen=True, checkpointing="none", cached=True),
}


class TrainStep:
    """A model, a batch and an optimizer, and a step that can be done in any way."""

    def __init__(self, size: int, batch_size: int, device: torch.device, config: str | Path = CONFIG):
        if size % 64:
            raise ValueError(f"--size must be a multiple of 64, got {size}")
        torch.manual_seed(0)
        self.model: ControlLDM = create_model(config).to(device).train()
        with torch.no_grad():
            for parameter in self.model.parameters():
                if not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.02)
        self.control = dict(self.model.control_model.named_parameters())
        # A rate of 0: all the work of an update, and the same weights for every way.
        self.optimizer = torch.optim.AdamW(self.control.values(), lr=0.0, fused=True)
        self.batch = {
            "jpg": torch.rand(batch_size, size, size, 3, device=device) * 2 - 1,
            "hint": torch.rand(batch_size, size, size, 3, device=device),
            "txt": ["a house by the sea"] * batch_size,
            "noise_seed": torch.arange(batch_size),
        }
        with torch.no_grad():
            moments = self.model.encode_first_stage(
                self.batch["jpg"].permute(0, 3, 1, 2).contiguous()
            ).parameters
            context = self.model.get_learned_conditioning(self.batch["txt"])
        self.cached_batch = {**self.batch, "moments": moments, "context": context}

    def prepare(self, way: Way) -> None:
        """Let go of the gradients, and set up the model for a way."""
        self.model.zero_grad(set_to_none=True)
        self.model.freeze_untrained()
        if not way.frozen:
            self.model.model.requires_grad_(True)
        set_checkpointing(self.model, way.checkpointing)
        self.optimizer.param_groups[0]["fused"] = way.fused

    def backward(self, way: Way) -> None:
        """Forward and backward."""
        loss, _ = self.model.shared_step(self.cached_batch if way.cached else self.batch)
        loss.backward()

    def step(self, way: Way) -> None:
        """A whole step."""
        self.backward(way)
        self.optimizer.step()

    def gradients(self, way: Way) -> dict[str, torch.Tensor]:
        """The control copy's gradients by name, until the next step is prepared."""
        self.prepare(way)
        self.backward(way)
        return {name: parameter.grad for name, parameter in self.control.items()}


def gradient_error(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """‖a - b‖ / ‖b‖ over all weights together."""
    difference = sum((a[name] - b[name]).double().square().sum() for name in b)
    return float((difference / sum(gradient.double().square().sum() for gradient in b.values())).sqrt())


def run(
    size: int,
    batch_size: int,
    repeats: int,
    device: torch.device,
    config: str | Path = CONFIG,
    names: Sequence[str] = tuple(WAYS),
) -> dict[str, dict[str, float]]:
    """Compare gradients, then time the ways of these names and the original's.

    Returns:
        by way: ``seconds`` (median), ``peak`` (bytes beyond weights and optimizer state), ``error`` of the
            gradients.

    Raises:
        RuntimeError: the gradients of a way differ from the original way's by more than 1e-4.
    """
    ways = {name: way for name, way in WAYS.items() if name in (BASELINE, *names)}
    bench = TrainStep(size, batch_size, device, config)
    results: dict[str, dict[str, float]] = {}
    expected = {name: gradient.clone() for name, gradient in bench.gradients(WAYS[BASELINE]).items()}
    for name, way in ways.items():
        error = gradient_error(bench.gradients(way), expected)
        if not error <= TOLERANCE:
            raise RuntimeError(f"The gradients of {name!r} are off by {error:.1e}, more than {TOLERANCE}.")
        results[name] = {"error": error}
    del expected
    bench.optimizer.step()  # makes its state
    for name, way in ways.items():
        bench.prepare(way)
        with peak_memory(device) as memory:
            bench.step(way)
        results[name]["peak"] = memory.peak

    def timed(way: Way) -> Callable[[], float]:
        def once() -> float:
            bench.prepare(way)
            return seconds(lambda: bench.step(way), device)

        return once

    for name, times in interleaved({name: timed(way) for name, way in ways.items()}, repeats).items():
        results[name]["seconds"] = median(times)
    return results


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results as lines of text."""
    baseline = results[BASELINE]["seconds"]
    lines = [f"{'way':30} {'seconds':>8} {'times as fast':>14} {'peak GB':>8} {'gradients off by':>17}"]
    for name, result in results.items():
        speed = baseline / result["seconds"]
        lines.append(
            f"{name:30} {result['seconds']:8.2f} {speed:14.2f} {result['peak'] / 1e9:8.2f} "
            f"{result['error']:17.1e}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=256, help="side of the picture in pixels (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=1, help="pictures per step (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each way (%(default)s)")
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help="only these"
    )
    parser.add_argument("--threads", type=int, help="threads of the CPU (torch's own choice)")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    print(f"fp32, {options.size}x{options.size}, batch {options.batch_size}; {machine(device)}", flush=True)
    print(table(run(options.size, options.batch_size, options.repeats, device, names=options.ways)))


if __name__ == "__main__":
    main()
