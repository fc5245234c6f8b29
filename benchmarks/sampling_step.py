"""One guided DDIM step with control at SD 1.5 size: this project against diffusers and OpenVINO.

    python -m benchmarks.sampling_step --size 256 512 --dtype fp32 --device cpu --peer diffusers openvino

Both sides hold the same random weights (860 M in the UNet, 361 M in the control copy, no layer left at zero),
take the same latents and text, and must agree before they are timed. They take turns in one process; the
median counts. A
step is what a sampler repeats: control copy and UNet on the conditional and the unconditional half in one
batch, guidance, the DDIM update. Ours is timed inside `DDIMSampler.sample`, from one callback to the next;
the hint's embedding, which ours computes once per sampling, lies before the first. diffusers' step is the
loop of its StableDiffusionControlNetPipeline, eager, which embeds the hint in every step. OpenVINO runs the
same loop over diffusers' networks, converted as one model, compiled at the same size and precision.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, DDIMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_controlnet_checkpoint,
    convert_ldm_unet_checkpoint,
)
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from benchmarks.measure import interleaved, machine, median, peak_memory, synchronize, weight_bytes
from cldm.cldm import ControlLDM
from cldm.model import parameters_on_meta
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.packing import pack_weights
from ldm.util import instantiate_from_config

CONFIG = Path(__file__).resolve().parent.parent / "models" / "cldm_v15.yaml"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Allowed relative difference of the two sides' first predictions.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 3e-2}
SCALE = 9.0
Clock = Callable[[], float]


@dataclass(frozen=True)
class Inputs:
    """What both sides start from; a batch of one picture."""

    latent: Tensor  # float32 [1, 4, size / 8, size / 8]
    hint: Tensor  # [1, 3, size, size] in [0, 1]
    text: Tensor  # [1, 77, D]
    empty_text: Tensor  # [1, 77, D]

    @classmethod
    def random(cls, size: int, text_width: int, device: torch.device, dtype: torch.dtype) -> Inputs:
        if size % 64:
            raise ValueError(f"--size must be a multiple of 64, got {size}")
        generator = torch.Generator().manual_seed(0)
        latent = torch.randn(1, 4, size // 8, size // 8, generator=generator).to(device)
        hint = torch.rand(1, 3, size, size, generator=generator).to(device, dtype)
        text, empty_text = torch.randn(2, 1, 77, text_width, generator=generator).to(device, dtype)
        return cls(latent, hint, text, empty_text)


def random_model(config: DictConfig, device: torch.device, dtype: torch.dtype) -> ControlLDM:
    """`config`'s model with random weights, without VAE and text encoder, which no step needs."""
    config = config.copy()
    config.params.first_stage_config = config.params.cond_stage_config = {"target": "torch.nn.Identity"}
    with parameters_on_meta():
        model = instantiate_from_config(config)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: random_weight(name, p.shape, generator).to(dtype) for name, p in model.named_parameters()
    }
    model.load_state_dict(weights, strict=False, assign=True)
    return model.eval().requires_grad_(False).to(device)


def random_weight(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Uniform, of a size that keeps activations alive; not even zero convolutions get zeros."""
    noise = torch.empty(shape).uniform_(-1, 1, generator=generator)
    if len(shape) > 1:
        return noise.mul_((3 / shape[1:].numel()) ** 0.5)
    return noise.mul_(0.1).add_(1.0 if name.endswith("weight") else 0.0)


class Peer:
    """diffusers' ControlNet pipeline around the very same tensors."""

    tolerances = TOLERANCES

    def __init__(
        self, config: DictConfig, ours: ControlLDM, device: torch.device, clock: Clock = time.perf_counter
    ):
        self.device, self.clock = device, clock
        unet = config.params.unet_config.params
        sizes = {
            "block_out_channels": [unet.model_channels * factor for factor in unet.channel_mult],
            "layers_per_block": unet.num_res_blocks,
            "cross_attention_dim": unet.context_dim,
            "attention_head_dim": unet.num_heads,  # diffusers' old name for the number of heads
        }
        with torch.device("meta"):
            self.unet = UNet2DConditionModel(**sizes).eval()
            self.controlnet = ControlNetModel(**sizes).eval()
        state = ours.state_dict()
        self.unet.load_state_dict(convert_ldm_unet_checkpoint(state, self.unet.config), assign=True)
        self.controlnet.load_state_dict(
            convert_controlnet_checkpoint(state, self.controlnet.config), assign=True
        )
        self.scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )

    def compile_for(self, inputs: Inputs) -> None:
        """Nothing to do for an eager peer."""

    def predict(self, latents: Tensor, t: Tensor, texts: Tensor, hints: Tensor) -> Tensor:
        down, middle = self.controlnet(
            latents,
            t,
            encoder_hidden_states=texts,
            controlnet_cond=hints,
            conditioning_scale=1.0,
            return_dict=False,
        )
        return self.unet(
            latents,
            t,
            encoder_hidden_states=texts,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]

    def exact(self, latents: Tensor, t: Tensor, texts: Tensor, hints: Tensor) -> Tensor | None:
        """What `predict` would give in fp32, where weights in fp32 are at hand and it computes in less."""
        return None

    def sample(self, inputs: Inputs, steps: int) -> list[float]:
        """Moments at which each step of a run was done."""
        self.scheduler.set_timesteps(max(steps, 20), device=self.device)
        texts = torch.cat([inputs.empty_text, inputs.text])
        hints = torch.cat([inputs.hint] * 2)
        latent, done = inputs.latent.to(self.unet.dtype), []
        for t in self.scheduler.timesteps[:steps]:
            pair = self.scheduler.scale_model_input(torch.cat([latent] * 2), t)
            without, with_text = self.predict(pair, t, texts, hints).chunk(2)
            latent = self.scheduler.step(
                without + SCALE * (with_text - without), t, latent, return_dict=False
            )[0]
            synchronize(self.device)
            done.append(self.clock())
        return done


class Ours:
    """`DDIMSampler.sample`, as every front end calls it: on a CPU with packed weights."""

    def __init__(self, model: ControlLDM, device: torch.device, clock: Clock = time.perf_counter):
        if device.type == "cpu":
            pack_weights(model)
        self.model, self.sampler, self.device, self.clock = model, DDIMSampler(model), device, clock

    def predict(self, latents: Tensor, t: Tensor, texts: Tensor, hints: Tensor) -> Tensor:
        cond = {"c_concat": [hints], "c_crossattn": [texts]}
        return self.model.apply_model(latents, t.expand(len(latents)), cond)

    def sample(self, inputs: Inputs, steps: int) -> list[float]:
        """Moments at which each step of a run was done."""
        done = []

        def note(_predicted: Tensor, _step: int) -> None:
            synchronize(self.device)
            done.append(self.clock())

        self.sampler.sample(
            steps,
            1,
            tuple(inputs.latent.shape[1:]),
            self.condition(inputs.hint, inputs.text),
            x_T=inputs.latent,
            eta=0.0,
            unconditional_guidance_scale=SCALE,
            unconditional_conditioning=self.condition(inputs.hint, inputs.empty_text),
            img_callback=note,
            verbose=False,
        )
        return done

    def condition(self, hint: Tensor, text: Tensor) -> dict[str, Any]:
        """One half of guidance."""
        return {"c_concat": [hint], "c_crossattn": [text]}


def step_seconds(sample: Callable[[Inputs, int], list[float]], inputs: Inputs, steps: int = 2) -> float:
    """Seconds of one step: a run of ``steps + 1``, of which the first is left out."""
    done = sample(inputs, steps + 1)
    return (done[-1] - done[0]) / steps


@torch.inference_mode()
def check_agreement(ours: Ours, peer: Peer, inputs: Inputs) -> str:
    """How far the two predictions, or both from the exact one, are apart, in words.

    Raises:
        RuntimeError: it is more than rounding.
    """
    latents = torch.cat([inputs.latent] * 2).to(inputs.text.dtype)
    arguments = (
        latents,
        torch.tensor(501, device=latents.device),
        torch.cat([inputs.empty_text, inputs.text]),
        torch.cat([inputs.hint] * 2),
    )
    a, b, exact = ours.predict(*arguments), peer.predict(*arguments), peer.exact(*arguments)
    difference, allowed = _difference(a, b), peer.tolerances[latents.dtype]
    told = f"outputs differ by {difference:.1e}"
    if exact is not None:
        difference, allowed = _difference(a, exact), TOLERANCES[latents.dtype]
        told += f"; from fp32 ours by {difference:.1e}, the peer's by {_difference(b, exact):.1e}"
    if not difference <= allowed:
        raise RuntimeError(f"{told}, which is more than {allowed:.1e}: their times cannot be compared")
    return told


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


@torch.inference_mode()
def compare(ours: Ours, peers: Mapping[str, Peer], inputs: Inputs, repeats: int) -> None:
    """Time all sides on the same inputs, and print it."""
    size, device = inputs.hint.shape[-1], inputs.hint.device
    agreements = {name: check_agreement(ours, peer, inputs) for name, peer in peers.items()}
    sides: dict[str, Ours | Peer] = {"ours": ours, **peers}
    peaks = {}
    for name, side in sides.items():  # also warms up
        with peak_memory(device) as memory:
            step_seconds(side.sample, inputs, steps=1)
        peaks[name] = memory.peak
    times = interleaved(
        {name: lambda s=side: step_seconds(s.sample, inputs) for name, side in sides.items()}, repeats
    )
    for name in sides:
        spread = f"{min(times[name]):.3f} to {max(times[name]):.3f}"
        working = f"{peaks[name] / 2**20:.0f} MiB beside the weights"
        print(f"{size:5} {name:10} {median(times[name]):7.3f} s a step ({spread}), at most {working}")
    for name, agreement in agreements.items():
        ratio = median(times[name]) / median(times["ours"])
        print(f"{name.upper()} ratio {ratio:.2f} x at {size}, {agreement}")


def make_peers(
    names: Sequence[str], config: DictConfig, model: ControlLDM, device: torch.device, clock: Clock
) -> dict[str, Peer]:
    """The peers of these names, around the tensors of ``model``, which is not packed yet."""
    peers = {}
    for name in names:
        if name == "openvino":
            from benchmarks.openvino_peer import OpenVinoPeer

            peers[name] = OpenVinoPeer(config, model, clock)
        else:
            peers[name] = Peer(config, model, device, clock)
    return peers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", nargs="+", choices=["diffusers", "openvino"], default=["diffusers"])
    parser.add_argument(
        "--size", type=int, nargs="+", default=[256, 512], help="side of the picture, in pixels"
    )
    parser.add_argument(
        "--channels",
        type=int,
        default=320,
        help="of the first level; fewer for little memory: with openvino, SD 1.5's 320 take 16 GB in fp32",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5, help="turns of two steps for each side")
    parser.add_argument("--threads", type=int, help="of torch on a CPU")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count processor time of one thread: for a CPU that is busy",
    )
    arguments = parser.parse_args()
    if arguments.processor_time or arguments.threads:
        torch.set_num_threads(1 if arguments.processor_time else arguments.threads)
    clock = time.process_time if arguments.processor_time else time.perf_counter
    device, dtype = torch.device(arguments.device), DTYPES[arguments.dtype]

    config = OmegaConf.load(CONFIG).model
    for part in (config.params.unet_config, config.params.control_stage_config):
        part.params.model_channels = arguments.channels
    model = random_model(config, device, dtype)
    weights = weight_bytes(model.model, model.control_model)
    peers = make_peers(arguments.peer, config, model, device, clock)
    ours = Ours(model, device, clock)
    kind = "SD 1.5" if arguments.channels == 320 else f"SD 1.5 of {arguments.channels} channels"
    print(f"One guided step with control, {kind}, {arguments.dtype}, batch 1 x 2\n{machine(device)}")
    print(f"weights of either side: {weights / 2**20:.0f} MiB")
    for size in arguments.size:
        text_width = config.params.unet_config.params.context_dim
        inputs = Inputs.random(size, text_width, device, dtype)
        for peer in peers.values():
            peer.compile_for(inputs)
        compare(ours, peers, inputs, arguments.repeats)


if __name__ == "__main__":
    main()
