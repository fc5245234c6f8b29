"""Decoding and encoding a picture by the VAE of SD 1.5: this project against diffusers.

    python -m benchmarks.vae --size 512 --dtype fp32 [--processor-time]

Both sides hold the same random weights and must agree before they are timed; they take turns in one process,
and the median counts. diffusers runs eagerly, as its pipelines do.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from diffusers import AutoencoderKL as DiffusersVae
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from benchmarks.measure import Clock, cpu_seconds, interleaved, machine, median, peak_memory, seconds
from benchmarks.sampling_step import CONFIG, DTYPES, TOLERANCES, random_weight
from cldm.model import parameters_on_meta
from ldm.models.autoencoder import AutoencoderKL
from ldm.packing import pack_weights
from ldm.util import instantiate_from_config


def vae_pair(
    config: DictConfig, device: torch.device, dtype: torch.dtype
) -> tuple[AutoencoderKL, DiffusersVae]:
    """Ours, packed on a CPU, and diffusers', with the same random weights."""
    with parameters_on_meta():
        ours = instantiate_from_config(config)
    generator = torch.Generator().manual_seed(0)
    weights = {name: random_weight(name, p.shape, generator).to(dtype) for name, p in ours.named_parameters()}
    ours.load_state_dict(weights, strict=False, assign=True)
    sizes = config.params.ddconfig
    with torch.device("meta"):
        theirs = DiffusersVae(
            block_out_channels=[sizes.ch * factor for factor in sizes.ch_mult],
            down_block_types=["DownEncoderBlock2D"] * len(sizes.ch_mult),
            up_block_types=["UpDecoderBlock2D"] * len(sizes.ch_mult),
            layers_per_block=sizes.num_res_blocks,
            latent_channels=sizes.z_channels,
        )
    state = {f"first_stage_model.{name}": tensor for name, tensor in ours.state_dict().items()}
    theirs.load_state_dict(convert_ldm_vae_checkpoint(state, theirs.config), assign=True)
    sides = [side.eval().requires_grad_(False).to(device) for side in (ours, theirs)]
    if device.type == "cpu":
        pack_weights(sides[0])
    return sides[0], sides[1]


def compare(
    name: str,
    ours: Callable[[], Tensor],
    theirs: Callable[[], Tensor],
    clock: Clock,
    repeats: int,
    tolerance: float,
) -> float:
    """Print how many times as fast ours is, and return it.

    Raises:
        RuntimeError: the two give different numbers.
    """
    a, b = ours().float(), theirs().float()  # also warms up
    difference = float((a - b).norm() / b.norm())
    if not difference <= tolerance:
        raise RuntimeError(
            f"{name}: the two sides differ by {difference:.2e}: their times cannot be compared"
        )
    sides = {"ours": ours, "diffusers": theirs}
    peaks = {}
    for side, function in sides.items():
        with peak_memory(a.device) as memory:
            function()
        peaks[side] = memory.peak
    times = interleaved({side: lambda f=function: clock(f) for side, function in sides.items()}, repeats)
    for side, measured in times.items():
        spread = f"{min(measured):.3f} to {max(measured):.3f}"
        print(f"{name} {side:10} {median(measured):7.3f} s ({spread}), at most {peaks[side] / 2**20:.0f} MiB")
    ratio = median(times["diffusers"]) / median(times["ours"])
    print(f"VAE {name} ratio {ratio:.2f} x, outputs differ by {difference:.1e}")
    return ratio


@torch.inference_mode()
def compare_vae(
    config: DictConfig, size: int, device: torch.device, dtype: torch.dtype, clock: Clock, repeats: int
) -> dict[str, float]:
    """Both directions for one picture of ``size`` pixels a side; the ratios by their names."""
    ours, theirs = vae_pair(config, device, dtype)
    factor = 2 ** (len(config.params.ddconfig.ch_mult) - 1)
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(1, config.params.embed_dim, size // factor, size // factor, generator=generator)
    picture = torch.rand(1, 3, size, size, generator=generator) * 2 - 1
    latent, picture = latent.to(device, dtype), picture.to(device, dtype)
    pairs: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        "decode": (lambda: ours.decode(latent), lambda: theirs.decode(latent).sample),
        "encode": (lambda: ours.encode(picture).mean, lambda: theirs.encode(picture).latent_dist.mean),
    }
    return {name: compare(name, *pair, clock, repeats, TOLERANCES[dtype]) for name, pair in pairs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs="+", default=[512], help="side of the picture, in pixels")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch on a CPU")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count processor time of one thread: for a CPU that is busy",
    )
    options = parser.parse_args()
    if options.processor_time or options.threads:
        torch.set_num_threads(1 if options.processor_time else options.threads)
    device = torch.device(options.device)
    clock = cpu_seconds if options.processor_time else lambda function: seconds(function, device)
    config = OmegaConf.load(CONFIG).model.params.first_stage_config
    for size in options.size:
        print(f"VAE of SD 1.5, {options.dtype}, one picture of {size}x{size} pixels\n{machine(device)}")
        compare_vae(config, size, device, DTYPES[options.dtype], clock, options.repeats)


if __name__ == "__main__":
    main()
