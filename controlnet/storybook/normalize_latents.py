"""Give an autoencoder's latents mean 0 and variance 1, each channel by itself.

``python -m controlnet.storybook.normalize_latents outputs/tiny_vae/checkpoints/last.ckpt
outputs/tiny_vae/vae.safetensors``

Diffusion wants latents of variance 1. Stable Diffusion's ``scale_factor`` makes them so by one number,
measured by hand; here what is measured goes into the convolutions ``quant_conv`` and ``post_quant_conv``, so
that pictures stay as they are and the factor is 1.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from cldm.model import create_model
from controlnet.storybook.dataset import StorybookDataset
from ldm.models.autoencoder import AutoencoderKL
from ldm.weights import load_into, read_state_dict, save_state_dict

logger = logging.getLogger(__name__)


@torch.no_grad()
def latent_statistics(model: AutoencoderKL, scenes: StorybookDataset) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent channel over some scenes, both ``[embed_dim]``."""
    latents = []
    for index in range(len(scenes)):
        picture = torch.from_numpy(scenes[index]["jpg"]).permute(2, 0, 1)[None]
        latents.append(model.encode(picture.to(model.device)).mode())
    stacked = torch.cat(latents).transpose(0, 1).flatten(1)  # [C, N * h * w]
    return stacked.mean(1), stacked.std(1)


@torch.no_grad()
def normalize(model: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Change the model so that latents ``z`` become ``(z - mean) / std`` and are decoded as before.

    The posterior's variance is scaled along, so samples decode as before too.

    Raises:
        ValueError: if a channel does not vary.
    """
    if not (std > 1e-6).all():
        raise ValueError(
            f"Standard deviations of the latents are {std.tolist()}: a channel is not used at all."
        )
    channels = len(mean)
    quant, post = model.quant_conv, model.post_quant_conv
    assert quant.bias is not None and post.bias is not None
    quant.weight[:channels] /= std[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.bias[channels:] -= 2 * std.log()  # the second half is the logarithm of the variance
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std[None, :, None, None]


def normalize_file(config: Path, source: Path, target: Path, count: int = 200) -> tuple[Tensor, Tensor]:
    """Read an autoencoder's weights, normalize its latents over ``count`` scenes, write them; returns mean
    and std.
    """
    model = cast(AutoencoderKL, create_model(config))
    load_into(model, read_state_dict(source), source)
    model.eval()
    statistics = latent_statistics(model, StorybookDataset(first_seed=0, count=count))
    normalize(model, *statistics)
    save_state_dict(model.state_dict(), target)
    return statistics


def main(arguments: list[str] | None = None) -> None:
    """Command line of ``python -m controlnet.storybook.normalize_latents``."""
    parser = argparse.ArgumentParser(
        prog="python -m controlnet.storybook.normalize_latents", description=__doc__.split("\n")[0]
    )
    parser.add_argument("source", type=Path, help="the trained autoencoder: a checkpoint or weights file")
    parser.add_argument("target", type=Path, help="weights file to write")
    parser.add_argument("--config", type=Path, default=Path("models/tiny/autoencoder_tiny.yaml"))
    parser.add_argument("--count", type=int, default=200, help="scenes to measure (default 200)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    mean, std = normalize_file(options.config, options.source, options.target, options.count)
    logger.info("Latents had mean %s and standard deviation %s.", mean.tolist(), std.tolist())


if __name__ == "__main__":
    main()
