"""What a model needs to run, as float16 or less, in parts that fit into a repository.

``python -m controlnet.storybook.export outputs/tiny_control/checkpoints/last.ckpt
models/tiny/control_tiny_seg.safetensors``
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from ldm.atomic import atomic_write
from ldm.weights import read_state_dict, save_state_dict

logger = logging.getLogger(__name__)

_at_the_ends = re.compile(r"control_model\.(input_hint_block|zero_convs|middle_block_out)\.").match


def export(
    source: Path,
    target: Path,
    part_size: str = "14MB",
    vae: Path | None = None,
    only: str = "",
    float8: bool = False,
) -> list[Path]:
    """Write a checkpoint's weights as float16, without the optimizer and without what the YAML gives anyway.

    Noise schedules (``betas``, ``alphas_cumprod``...: keys without a dot) are left out: they are computed,
    and float16 would spoil them.

    Args:
        source: checkpoint or weights file.
        target: ``NAME.safetensors``; larger than ``part_size`` it becomes ``NAME-00001-of-0000N.safetensors``
            and so on, with the usual ``NAME.safetensors.index.json``.
        part_size: the largest size of one file, such as "14MB".
        vae: an autoencoder whose decoder takes the place of the one in ``source``.
        only: what the names of the weights that are wanted begin with.
        float8: matrices and kernels as float8_e4m3fn, in half the bytes, except for a control's first and
            last layers: its hint encoder and zero convolutions.

    Returns:
        The files.

    Raises:
        ValueError: a target that is no .safetensors, weights that float16 cannot hold, or a ``vae`` of other
            latents.
    """
    if target.suffix != ".safetensors":
        raise ValueError(f"{target}: the exported weights are a .safetensors file.")
    state, weights = {}, read_state_dict(source)
    if vae is not None:
        weights |= _decoder_of(vae, weights)
    for name, tensor in weights.items():
        if "." not in name or not name.startswith(only):
            continue
        dtype = (
            torch.float8_e4m3fn if float8 and tensor.ndim > 1 and not _at_the_ends(name) else torch.float16
        )
        state[name] = tensor.to(dtype).contiguous() if tensor.is_floating_point() else tensor
        if not torch.isfinite(state[name].float()).all():
            raise ValueError(
                f"{source}: {name} has values beyond {dtype} (largest {tensor.abs().max().item():g})."
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    before = set(target.parent.glob(f"{target.stem}*.safetensors*"))
    parts = split_torch_state_dict_into_shards(
        state, filename_pattern=f"{target.stem}{{suffix}}.safetensors", max_shard_size=part_size
    )
    written = [target.parent / name for name in parts.filename_to_tensors]
    for path in written:
        save_state_dict({name: state[name] for name in parts.filename_to_tensors[path.name]}, path)
    if parts.is_sharded:
        written.append(target.with_name(f"{target.name}.index.json"))
        metadata = {**parts.metadata, "format": "pt"}
        with atomic_write(written[-1]) as unfinished:
            index = {"metadata": metadata, "weight_map": parts.tensor_to_filename}
            unfinished.write_text(json.dumps(index, indent=2), encoding="utf-8")
    for old in before - set(written):
        old.unlink()
    return sorted(written)


def _decoder_of(vae: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The autoencoder's weights by their names in the whole model.

    Raises:
        ValueError: it has other weights than the model's, or other values before the latents.
    """
    prefix = "first_stage_model."
    state = {prefix + name: tensor for name, tensor in read_state_dict(vae).items()}
    differing = {name for name in weights if name.startswith(prefix)} ^ set(state)
    if not differing:
        kept = [
            name for name in state if not name.startswith((f"{prefix}decoder.", f"{prefix}post_quant_conv."))
        ]
        differing = {name for name in kept if not torch.equal(state[name], weights[name])}
    if differing:
        raise ValueError(
            f"{vae} is not the model's autoencoder with another decoder: {min(differing)} differs. Train it "
            "with "
            "--decoder-only from the autoencoder that the model has learned with."
        )
    return state


def main(arguments: list[str] | None = None) -> None:
    """Command line of ``python -m controlnet.storybook.export``."""
    parser = argparse.ArgumentParser(
        prog="python -m controlnet.storybook.export", description="Write weights to be shipped."
    )
    parser.add_argument("source", type=Path, help="checkpoint of training")
    parser.add_argument("target", type=Path, help="NAME.safetensors to write")
    parser.add_argument("--part-size", default="14MB", help="most of one file (default 14MB)")
    parser.add_argument("--vae", type=Path, help="autoencoder whose decoder to take")
    parser.add_argument("--only", default="", help="what the names of the weights that are wanted begin with")
    parser.add_argument("--float8", action="store_true", help="kernels in 8 bits, but for a control's ends")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asked = (options.part_size, options.vae, options.only, options.float8)
    for path in export(options.source, options.target, *asked):
        content = path.read_bytes()
        logger.info("%s  %s  %d bytes", hashlib.sha256(content).hexdigest(), path, len(content))


if __name__ == "__main__":
    main()
