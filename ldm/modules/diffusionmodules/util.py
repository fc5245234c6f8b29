"""Noise schedules, DDIM time steps, the time embedding and small layers.

Sources: DDPM (arXiv 2006.11239), DDIM (2010.02502), improved DDPM (2102.09672), and
ldm/modules/diffusionmodules/util.py of the original.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

logger = logging.getLogger(__name__)


def make_beta_schedule(
    schedule: str,
    n_timestep: int,
    linear_start: float = 1e-4,
    linear_end: float = 2e-2,
    cosine_s: float = 8e-3,
) -> np.ndarray:
    """Variances beta_t of the forward process, float64 ``[n_timestep]``.

    Args:
        schedule: "linear" (in sqrt(beta), Stable Diffusion's), "sqrt_linear" (in beta), "sqrt" or "cosine".
        linear_start: first beta of all but "cosine".
        linear_end: last beta of all but "cosine".
        cosine_s: offset of "cosine".
    """
    if schedule == "linear":
        return np.linspace(linear_start**0.5, linear_end**0.5, n_timestep, dtype=np.float64) ** 2
    if schedule == "sqrt_linear":
        return np.linspace(linear_start, linear_end, n_timestep, dtype=np.float64)
    if schedule == "sqrt":
        return np.linspace(linear_start, linear_end, n_timestep, dtype=np.float64) ** 0.5
    if schedule == "cosine":
        time = np.arange(n_timestep + 1, dtype=np.float64) / n_timestep + cosine_s
        alphas_cumprod = np.cos(time / (1 + cosine_s) * np.pi / 2) ** 2
        return np.clip(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], 0, 0.999)
    raise ValueError(f"beta schedule {schedule!r} unknown; expected linear, sqrt_linear, sqrt or cosine")


def make_ddim_timesteps(
    ddim_discr_method: str, num_ddim_timesteps: int, num_ddpm_timesteps: int, verbose: bool = True
) -> np.ndarray:
    """Ascending time steps that DDIM visits, int64 in [0, num_ddpm_timesteps).

    "uniform" gives the original's steps wherever those exist: every ``num_ddpm_timesteps //
    num_ddim_timesteps``-th one, so that 30 of 1000 become 31. Where the original would step past the end (S =
    3, 9, 27, 36, 37, 101-111, 251-333 and 501-1000) the asked-for number of steps is spread evenly instead.

    Raises:
        ValueError: the number of steps is not in [1, num_ddpm_timesteps], or the method is unknown.
    """
    steps, total = num_ddim_timesteps, num_ddpm_timesteps
    if not 1 <= steps <= total:
        raise ValueError(f"got {steps} DDIM steps; expected 1 to {total}, the model's number of time steps")
    if ddim_discr_method == "uniform":
        timesteps = np.arange(0, total, total // steps) + 1
        if timesteps[-1] >= total:
            first = 1 if steps < total else 0
            timesteps = np.round(np.linspace(first, total - 1, steps)).astype(np.int64)
    elif ddim_discr_method == "quad":
        timesteps = (np.linspace(0, math.sqrt(total * 0.8), steps) ** 2).astype(np.int64) + 1
        timesteps = np.minimum(timesteps, total - 1)
    else:
        raise ValueError(f"DDIM discretization {ddim_discr_method!r} unknown; expected uniform or quad")
    if verbose:
        logger.info("DDIM time steps: %s", timesteps)
    return timesteps


def make_ddim_sampling_parameters(
    alphacums: torch.Tensor | np.ndarray, ddim_timesteps: np.ndarray, eta: float, verbose: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """sigma_t, alpha_t and alpha_{t-1} at the DDIM time steps, each float64 ``[S]`` (DDIM, equation 16).

    Args:
        alphacums: cumulative products of 1 - beta, ``[T]``.
        eta: 0 for the deterministic sampler, 1 for DDPM's variance.
    """
    alphacums = np.asarray(
        alphacums.detach().cpu() if torch.is_tensor(alphacums) else alphacums, dtype=np.float64
    )
    alphas = alphacums[ddim_timesteps]
    alphas_prev = np.concatenate([alphacums[:1], alphas[:-1]])
    sigmas = eta * np.sqrt((1 - alphas_prev) / (1 - alphas) * (1 - alphas / alphas_prev))
    if verbose:
        logger.info(
            "DDIM alphas %s, previous alphas %s, sigmas for eta %s: %s", alphas, alphas_prev, eta, sigmas
        )
    return sigmas, alphas, alphas_prev


def extract_into_tensor(a: torch.Tensor, t: torch.Tensor, x_shape: Sequence[int]) -> torch.Tensor:
    """Values ``a[t]`` shaped to multiply a batch: ``[T], [B] -> [B, 1, 1, ...]`` with as many dimensions as
    x_shape.
    """
    return a.gather(-1, t).reshape(t.shape[0], *(1,) * (len(x_shape) - 1))


def timestep_embedding(
    timesteps: torch.Tensor, dim: int, max_period: float = 10000, repeat_only: bool = False
) -> torch.Tensor:
    """Sinusoidal embedding of time steps: ``[B] -> [B, dim]``, float32, cosines first.

    Args:
        max_period: the lowest frequency is 1 / max_period.
        repeat_only: give the time steps themselves, repeated.
    """
    if repeat_only:
        return timesteps[:, None].expand(-1, dim)
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    frequencies = torch.exp(-math.log(max_period) * exponents / half)
    angles = timesteps[:, None].float() * frequencies  # [B, half]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return nn.functional.pad(embedding, (0, dim % 2))  # [B, dim]


def noise_like(
    shape: Sequence[int],
    device: torch.device | str,
    repeat: bool = False,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> torch.Tensor:
    """Standard normal noise, float32 ``shape``.

    Args:
        repeat: draw for one sample and use it for the whole batch.
        generator: None for torch's global stream on ``device``; one generator for the batch; or one for each
            sample, so that sample k does not depend on the size of its batch. A generator draws on its own
            device.
    """
    if isinstance(generator, Sequence):
        if len(generator) != shape[0]:
            raise ValueError(
                f"got {len(generator)} generators for a batch of {shape[0]}; expected one for each sample"
            )
        return torch.cat([noise_like((1, *shape[1:]), device, generator=each) for each in generator])
    drawn_on = device if generator is None else generator.device
    drawn_shape = (1, *shape[1:]) if repeat else tuple(shape)
    noise = torch.randn(drawn_shape, device=drawn_on, generator=generator).to(device)
    return noise.repeat(shape[0], *(1,) * (len(shape) - 1)) if repeat else noise


def checkpoint(func: Callable, inputs: Sequence, params: Sequence, flag: bool) -> torch.Tensor:
    """``func(*inputs)``; with ``flag`` and gradients on, activations are computed again in the backward pass.

    ``params`` is the original's argument; torch's non-reentrant checkpointing finds parameters by itself.
    """
    if flag and torch.is_grad_enabled():
        return torch_checkpoint(func, *inputs, use_reentrant=False)
    return func(*inputs)


def zero_module(module: nn.Module) -> nn.Module:
    """Set all parameters to 0, in place: the layer starts as if it were not there."""
    for parameter in module.parameters():
        parameter.detach().zero_()
    return module


class GroupNorm32(nn.GroupNorm):
    """Group normalization; torch computes its statistics in float32 for every input type."""


def normalization(channels: int) -> nn.Module:
    """Group normalization with 32 groups, as all residual blocks use it."""
    return GroupNorm32(32, channels)


def conv_nd(dims: int, *args, **kwargs) -> nn.Module:
    """A convolution over ``dims`` (1, 2 or 3) dimensions."""
    return _of_dims(dims, nn.Conv1d, nn.Conv2d, nn.Conv3d)(*args, **kwargs)


def avg_pool_nd(dims: int, *args, **kwargs) -> nn.Module:
    """Average pooling over ``dims`` (1, 2 or 3) dimensions."""
    return _of_dims(dims, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)(*args, **kwargs)


def linear(*args, **kwargs) -> nn.Linear:
    """A linear layer."""
    return nn.Linear(*args, **kwargs)


def _of_dims(dims: int, *classes: type[nn.Module]) -> type[nn.Module]:
    if dims not in (1, 2, 3):
        raise ValueError(f"got {dims} dimensions; expected 1, 2 or 3")
    return classes[dims - 1]
