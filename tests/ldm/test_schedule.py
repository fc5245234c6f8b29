"""Noise schedules and DDIM time steps against the original's numbers, and every step count that it crashed
at.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ldm.modules.diffusionmodules.util import (
    extract_into_tensor,
    make_beta_schedule,
    make_ddim_sampling_parameters,
    make_ddim_timesteps,
    noise_like,
    timestep_embedding,
)


def test_schedule_equals_the_original(golden) -> None:
    tensors, _ = golden("schedule")
    betas = make_beta_schedule("linear", 1000, linear_start=0.00085, linear_end=0.0120)
    np.testing.assert_allclose(betas, tensors["betas"], rtol=1e-12)
    alphas_cumprod = torch.tensor(np.cumprod(1 - betas), dtype=torch.float32)
    torch.testing.assert_close(alphas_cumprod, tensors["alphas_cumprod"], rtol=1e-6, atol=0)

    checked = {"betas", "alphas_cumprod"}
    for name in (name for name in tensors if name.startswith("timesteps.")):
        steps = int(name.split(".")[1])
        np.testing.assert_array_equal(make_ddim_timesteps("uniform", steps, 1000), tensors[name])
        checked.add(name)
    for name in (name for name in tensors if name.startswith("sigmas.")):
        _, steps, eta = name.split(".", 2)
        timesteps = make_ddim_timesteps("uniform", int(steps), 1000)
        sigmas, alphas, alphas_prev = make_ddim_sampling_parameters(
            tensors["alphas_cumprod"], timesteps, float(eta)
        )
        np.testing.assert_allclose(sigmas, tensors[name], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(alphas, tensors[f"alphas.{steps}"], rtol=1e-6)
        np.testing.assert_allclose(alphas_prev, tensors[f"alphas_prev.{steps}"], rtol=1e-6)
        checked |= {name, f"alphas.{steps}", f"alphas_prev.{steps}"}
    assert checked == set(tensors)


CRASHED = {3, 9, 27, 36, 37, *range(101, 112), *range(251, 334), *range(501, 1001)}


@pytest.mark.parametrize("method", ["uniform", "quad"])
def test_every_step_count_works(method: str) -> None:
    for steps in range(1, 1001):
        timesteps = make_ddim_timesteps(method, steps, 1000, verbose=False)
        assert timesteps[0] >= 0 and timesteps[-1] < 1000, steps
        assert (np.diff(timesteps) >= (1 if method == "uniform" else 0)).all(), steps
        if method == "uniform" and steps in CRASHED:
            assert len(timesteps) == steps
        elif method == "uniform":
            assert list(timesteps) == [t + 1 for t in range(0, 1000, 1000 // steps)]


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_step_counts_are_named(steps: int) -> None:
    with pytest.raises(ValueError, match=f"got {steps} DDIM steps; expected 1 to 1000"):
        make_ddim_timesteps("uniform", steps, 1000)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sqrt_linear", "sqrt"])
def test_betas_lie_between_0_and_1(schedule: str) -> None:
    betas = make_beta_schedule(schedule, 100)
    assert betas.shape == (100,) and betas.dtype == np.float64
    assert (betas > 0).all() and (betas < 1).all()
    if schedule != "cosine":
        assert (np.diff(betas) > 0).all()
    with pytest.raises(ValueError, match="'square'"):
        make_beta_schedule("square", 100)


def test_time_embedding() -> None:
    embedding = timestep_embedding(torch.tensor([0, 7]), 9)
    assert embedding.shape == (2, 9)
    assert embedding[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0]
    frequencies = 10000.0 ** (-torch.arange(4) / 4)
    torch.testing.assert_close(
        embedding[1, :8], torch.cat([(7 * frequencies).cos(), (7 * frequencies).sin()])
    )
    assert timestep_embedding(torch.tensor([3]), 2, repeat_only=True).tolist() == [[3, 3]]


def test_values_of_a_batch() -> None:
    values = extract_into_tensor(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2, 0]), (2, 4, 8, 8))
    assert values.shape == (2, 1, 1, 1) and values.flatten().tolist() == [3.0, 1.0]


def test_noise_of_a_sample_does_not_depend_on_its_batch() -> None:
    def generators(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    batch = noise_like((3, 4, 2, 2), "cpu", generator=generators(1, 2, 3))
    alone = noise_like((1, 4, 2, 2), "cpu", generator=generators(2))
    assert torch.equal(batch[1:2], alone)
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        noise_like((3, 4, 2, 2), "cpu", generator=generators(1, 2))
    repeated = noise_like((3, 4), "cpu", repeat=True)
    assert torch.equal(repeated[0], repeated[2])
