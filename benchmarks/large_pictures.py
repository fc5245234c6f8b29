"""Time and memory of large pictures at SD 1.5 size: a sampling step, and the VAE both ways.

    python -m benchmarks.large_pictures step decode encode --size 1024 [--batch 4] [--against-whole]

Weights are random, and each part is done once. The step is guided and with control. ``--against-whole`` has
the VAE work once more on whole feature maps instead of strips (`ldm.modules.strips`), and says how far the
results are apart.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
from omegaconf import OmegaConf
from torch import Tensor

from benchmarks.measure import cpu_seconds, machine, peak_memory, process_memory, seconds
from benchmarks.sampling_step import CONFIG, DTYPES, SCALE, random_model, random_weight
from cldm.model import parameters_on_meta
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.modules import strips
from ldm.packing import pack_weights
from ldm.util import instantiate_from_config

Clock = Callable[[Callable[[], object]], float]
PARTS = ("step", "decode", "encode")


def random_vae(device: torch.device, dtype: torch.dtype) -> AutoencoderKL:
    """SD 1.5's VAE with random weights, packed on a CPU."""
    with parameters_on_meta():
        vae = instantiate_from_config(OmegaConf.load(CONFIG).model.params.first_stage_config)
    generator = torch.Generator().manual_seed(0)
    weights = {name: random_weight(name, p.shape, generator).to(dtype) for name, p in vae.named_parameters()}
    vae.load_state_dict(weights, strict=False, assign=True)
    vae = vae.eval().requires_grad_(False).to(device)
    if device.type == "cpu":
        pack_weights(vae)
    return vae


def step(size: int, batch: int, device: torch.device, dtype: torch.dtype) -> Callable[[], Tensor]:
    """One DDIM step of control copy and UNet on both halves of guidance, and the embedding of the hint."""
    model = random_model(OmegaConf.load(CONFIG).model, device, dtype)
    if device.type == "cpu":
        pack_weights(model)
    width = model.model.diffusion_model.context_dim
    hint = torch.rand(batch, 3, size, size).to(device, dtype)
    text, empty = (
        {"c_concat": [hint], "c_crossattn": [torch.randn(batch, 77, width).to(device, dtype)]} for _ in "ab"
    )
    guidance = {"unconditional_guidance_scale": SCALE, "unconditional_conditioning": empty}
    shape = (4, size // 8, size // 8)
    return lambda: DDIMSampler(model).sample(1, batch, shape, text, verbose=False, **guidance)[0]


def vae_part(
    part: str, size: int, batch: int, device: torch.device, dtype: torch.dtype
) -> Callable[[], Tensor]:
    """Decoding or encoding."""
    vae = random_vae(device, dtype)
    if part == "decode":
        latents = torch.randn(batch, 4, size // 8, size // 8).to(device)
        return lambda: vae.decode(latents)
    pictures = (2 * torch.rand(batch, 3, size, size) - 1).to(device)
    return lambda: vae.encode(pictures).mode()


def measured(name: str, work: Callable[[], Tensor], clock: Clock, device: torch.device) -> Tensor:
    """The result of ``work``, after its time and memory were printed."""
    results: list[Tensor] = []
    with peak_memory(device) as memory:
        took = clock(lambda: results.append(work()))
    peak = "" if device.type == "cuda" else f", {process_memory('VmHWM') / 1e9:.2f} GB resident in all"
    print(f"{name}: {took:.1f} s, at most {memory.peak / 1e9:.2f} GB beside the weights{peak}", flush=True)
    return results[0]


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--size", type=int, default=1024, help="side of the picture, in pixels")
    parser.add_argument("--batch", type=int, default=1, help="pictures at once")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--against-whole", action="store_true")
    parser.add_argument("--processor-time", action="store_true", help="count processor time of one thread")
    options = parser.parse_args(arguments)
    if options.processor_time:
        torch.set_num_threads(1)
    device = torch.device(options.device)
    clock: Clock = cpu_seconds if options.processor_time else lambda work: seconds(work, device)
    print(f"{options.batch} x {options.size}x{options.size} pixels, {options.dtype}, {machine(device)}")
    for part in options.parts:
        setting = (options.size, options.batch, device, DTYPES[options.dtype])
        work = step(*setting) if part == "step" else vae_part(part, *setting)
        result = measured(part, work, clock, device)
        if options.against_whole and part != "step":
            limit, strips.LARGE_MAP = strips.LARGE_MAP, 2**62
            whole = measured(f"{part}, whole maps", work, clock, device)
            strips.LARGE_MAP = limit
            apart = (result - whole).abs().float()
            print(f"{part} differs by {apart.max():.1e} at most, {apart.mean():.1e} in the mean")


if __name__ == "__main__":
    main()
