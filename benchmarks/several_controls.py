"""What each further control costs: python -m benchmarks.several_controls --size 256 --dtype bf16

One guided DDIM step with one control, with two and with three, each a network of its own of SD 1.5's size
over one base, with random weights. The sides take turns in one process; the median counts. Then the same with
two controls of which the second acts in no step that is timed: what it costs outside of its window.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from benchmarks.measure import interleaved, machine, median, peak_memory, weight_bytes
from benchmarks.sampling_step import CONFIG, DTYPES, Clock, Inputs, Ours, random_model, step_seconds
from cldm.cldm import ControlLDM
from ldm.models.diffusion.guidance import FURTHER, WINDOW
from ldm.packing import pack_weights

ORDINALS = ("SECOND", "THIRD")


class Several(Ours):
    """Our sampler with further controls, which may act in a part of the run alone."""

    def __init__(
        self,
        model: ControlLDM,
        device: torch.device,
        clock: Clock,
        further: Sequence[nn.Module] = (),
        window: tuple[float, float] | None = None,
    ):
        super().__init__(model, device, clock)
        self.further, self.window = further, window

    def condition(self, hint: Tensor, text: Tensor) -> dict[str, Any]:
        part = {} if self.window is None else {WINDOW: self.window}
        beside = [{"c_concat": [hint], "control_model": network, **part} for network in self.further]
        return {**super().condition(hint, text), FURTHER: beside}


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="side of the picture, in pixels")
    parser.add_argument("--channels", type=int, default=320, help="of the first level; less for less memory")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3, help="turns of two steps for each side")
    parser.add_argument("--processor-time", action="store_true", help="of one thread: for a CPU that is busy")
    options = parser.parse_args(arguments)
    if options.processor_time:
        torch.set_num_threads(1)
    clock = time.process_time if options.processor_time else time.perf_counter
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    config = OmegaConf.load(CONFIG).model
    for part in (config.params.unet_config, config.params.control_stage_config):
        part.params.model_channels = options.channels
    model = random_model(config, device, dtype)
    networks = [copy.deepcopy(model.control_model) for _ in ORDINALS]
    if device.type == "cpu":
        for network in networks:
            pack_weights(network)
    sides = {number: Several(model, device, clock, networks[: number - 1]) for number in (1, 2, 3)}
    sides[0] = Several(model, device, clock, networks[:1], window=(0.0, 0.34))  # of three steps the first
    inputs = Inputs.random(options.size, config.params.unet_config.params.context_dim, device, dtype)
    print(f"One guided step, SD 1.5 of {options.channels} channels, {options.dtype}\n{machine(device)}")
    working = {}
    for number, side in sides.items():  # also warms up
        with peak_memory(device) as memory:
            step_seconds(side.sample, inputs, steps=1)
        working[number] = memory.peak / 2**20
    times = interleaved(
        {n: lambda s=s: step_seconds(s.sample, inputs) for n, s in sides.items()}, options.repeats
    )
    one = median(times[1])
    print(f"one control: {one:.3f} s a step, at most {working[1]:.0f} MiB beside the weights")
    for number, name in enumerate(ORDINALS, start=2):
        more = median(times[number]) - median(times[number - 1])
        held = (weight_bytes(networks[number - 2]) / 2**20) + max(working[number] - working[number - 1], 0)
        cost = f"{more:.3f} s a step ({more / one:.2f} of one control's) and {held:.0f} MiB more"
        print(f"{name} CONTROL ratio {one / median(times[number]):.2f} x, {cost}")
    print(f"SECOND CONTROL OUTSIDE ITS WINDOW ratio {one / median(times[0]):.2f} x")


if __name__ == "__main__":
    main()
