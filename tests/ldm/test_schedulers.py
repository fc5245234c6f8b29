"""Samplers beside DDIM: known points, masks, seeds, stops, few steps, and guidance in a part of the run."""

from __future__ import annotations

import pytest
import torch

from controlnet.generation.samplers import FAST, SAMPLERS, USUAL
from controlnet.generation.sampling import WHOLE_RUN, Start, sample_latents
from ldm.models.diffusion.ddpm import DDPM
from ldm.models.diffusion.guidance import interval_schedule
from ldm.models.diffusion.schedulers import SchedulerSampler

SHAPE = (4, 8, 8)
NOISY = ("euler_a", "ddpm", "lcm")


class Known(DDPM):
    """A model of data from N(0.5, spread), whose best prediction is known; remembers what it was asked."""

    def __init__(self, parameterization: str = "eps", spread: float = 0.0):
        schedule = {"linear_start": 0.00085, "linear_end": 0.012}
        network = {"target": "torch.nn.Identity"}
        super().__init__(network, use_ema=False, parameterization=parameterization, **schedule)
        self.spread, self.asked = spread, []

    def apply_model(self, x: torch.Tensor, t: torch.Tensor, cond: object) -> torch.Tensor:
        self.asked.append(cond)
        alpha = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        noise = (1 - alpha).sqrt() * (x - alpha.sqrt() * 0.5) / (alpha * self.spread**2 + 1 - alpha)
        start = (x - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        return {"eps": noise, "x0": start, "v": self.get_v(start, noise, t)}[self.parameterization]


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("parameterization", ["eps", "x0", "v"])
def test_every_sampler_finds_a_known_point(name: str, parameterization: str) -> None:
    if (name, parameterization) == ("euler_a", "x0"):
        pytest.skip("diffusers' scheduler knows no such models")
    samples, kept = SAMPLERS[name].make(Known(parameterization)).sample(8, 2, SHAPE, verbose=False)
    within = 0.15 if name in ("ddim", "plms") else 0.001  # the original's last step leaves some noise
    torch.testing.assert_close(samples, torch.full_like(samples, 0.5), rtol=0, atol=within)
    assert kept["pred_x0"][-1].shape == samples.shape


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_gives_data_its_spread(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    sampler = SAMPLERS[name].make(Known(spread=0.7))
    samples, _ = sampler.sample(40, 8, (4, 16, 16), verbose=False, generator=generator)
    assert samples.mean().item() == pytest.approx(0.5, abs=0.05)
    least = 0.3 if name == "lcm" else 0.65  # LCM's steps are for models that were taught to make them
    assert least < samples.std().item() < 0.8


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 50])
def test_few_and_many_steps(name: str, steps: int) -> None:
    told: list[int] = []
    sampler = SAMPLERS[name].make(Known(spread=0.5))
    samples, _ = sampler.sample(
        steps, 1, SHAPE, verbose=False, img_callback=lambda start, index: told.append(index)
    )
    assert torch.isfinite(samples).all()
    assert told == list(range(steps)) and len(sampler.ddim_timesteps) == steps == sampler.step_count(steps)


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_a_mask_keeps_is_kept(name: str) -> None:
    mask = torch.zeros(2, 1, 8, 8)
    mask[..., :4] = 1.0
    x0 = torch.full((2, *SHAPE), -0.4)
    samples, _ = SAMPLERS[name].make(Known(spread=1.0)).sample(20, 2, SHAPE, mask=mask, x0=x0, verbose=False)
    kept, free = samples[..., :4], samples[..., 4:]
    torch.testing.assert_close(kept, torch.full_like(kept, -0.4), rtol=0, atol=0.15)
    assert free.mean().item() > 0.2
    with pytest.raises(ValueError, match="a mask needs x0"):
        SAMPLERS[name].make(Known()).sample(2, 2, SHAPE, mask=mask, verbose=False)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_picture_depends_on_its_seed_alone(name: str) -> None:
    mask, x0 = torch.zeros(1, 1, 8, 8), torch.zeros(1, *SHAPE)
    mask[..., :2] = 1.0

    def run(*seeds: int) -> torch.Tensor:
        generator = [torch.Generator().manual_seed(seed) for seed in seeds]
        torch.manual_seed(len(seeds))  # the global stream is nobody's source
        masked = {"mask": mask.expand(len(seeds), -1, -1, -1), "x0": x0.expand(len(seeds), -1, -1, -1)}
        return (
            SAMPLERS[name]
            .make(Known(spread=0.7))
            .sample(4, len(seeds), SHAPE, generator=generator, verbose=False, **masked)[0]
        )

    three = run(5, 6, 7)
    torch.testing.assert_close(three[1:2], run(6))
    assert not torch.allclose(three[0], three[1], atol=0.1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_is_stopped_by_its_callbacks(name: str) -> None:
    class Stop(Exception):
        pass

    def stop(start: torch.Tensor, index: int) -> None:
        if index == 1:
            raise Stop

    model = Known(spread=0.5)
    sampler = SAMPLERS[name].make(model)
    with pytest.raises(Stop):
        sampler.sample(6, 1, SHAPE, img_callback=stop, verbose=False)
    asked = len(model.asked)
    assert asked == (3 if name == "plms" else 2)
    noise = torch.randn(1, *SHAPE)
    runs = [
        each.sample(6, 1, SHAPE, x_T=noise, verbose=False, generator=torch.Generator().manual_seed(0))[0]
        for each in (sampler, SAMPLERS[name].make(model))
    ]
    torch.testing.assert_close(*runs, msg="a stopped run leaves nothing behind")


@pytest.mark.parametrize("name", SAMPLERS)
def test_noise_is_drawn_by_those_that_say_so(name: str) -> None:
    noise = torch.randn(1, *SHAPE)
    runs = [
        SAMPLERS[name]
        .make(Known(spread=0.7))
        .sample(4, 1, SHAPE, x_T=noise, verbose=False, generator=torch.Generator().manual_seed(seed))[0]
        for seed in (1, 2)
    ]
    assert torch.allclose(*runs) == (name not in NOISY)


@pytest.mark.parametrize("name", SAMPLERS)
def test_outside_the_interval_only_the_conditional_half_runs(name: str) -> None:
    model = Known(spread=0.7)
    guidance = {"unconditional_guidance_scale": 3.0, "unconditional_conditioning": "without"}
    schedule = interval_schedule(3.0, 10, 0.2, 0.7)
    SAMPLERS[name].make(model).sample(10, 1, SHAPE, "with", ucg_schedule=schedule, verbose=False, **guidance)
    assert model.asked.count("without") == 5
    assert model.asked.count("with") == (11 if name == "plms" else 10)
    with pytest.raises(ValueError, match="got 3 values in ucg_schedule; expected 10"):
        SAMPLERS[name].make(model).sample(
            10, 1, SHAPE, "with", ucg_schedule=[1.0] * 3, verbose=False, **guidance
        )


def test_an_interval_by_the_middles_of_steps() -> None:
    assert interval_schedule(4.0, 4) == [4.0] * 4
    assert interval_schedule(4.0, 4, 0.25, 0.75) == [1.0, 4.0, 4.0, 1.0]
    assert interval_schedule(4.0, 8, 0.0, 0.8) == [4.0] * 6 + [1.0] * 2
    assert interval_schedule(4.0, 1, 0.6, 1.0) == [1.0]


def test_the_whole_run_is_guided_like_before_and_odd_step_counts_fit() -> None:
    """30 steps of DDIM are 31; a sampler that knows no schedule is given none."""
    cond = {"c_concat": [torch.zeros(1, 3, 64, 64)]}

    def run(interval: tuple[float, float]) -> tuple[torch.Tensor, int]:
        model = Known(spread=0.7)
        generator = torch.Generator().manual_seed(3)
        latents = sample_latents(
            model, cond, "without", steps=30, scale=2.0, generator=generator, guidance_interval=interval
        )
        return latents, model.asked.count("without")

    whole, asked = run(WHOLE_RUN)
    assert asked == 31
    assert run((0.0, 0.5))[1] == 16
    torch.testing.assert_close(run((0.0, 1.0))[0], whole, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eta": 0.5}, "got eta=0.5; it is DDIM's alone"),
        ({"score_corrector": object()}, "score_corrector: not supported"),
        ({"S": 0}, "got 0 steps; expected 1 to 1000"),
        ({"S": 1001}, "got 1001 steps; expected 1 to 1000"),
        ({"conditioning": torch.zeros(3, 1)}, "a condition for a batch of 3"),
    ],
)
def test_what_has_no_meaning_is_refused(arguments: dict, message: str) -> None:
    sampler = SAMPLERS["euler"].make(Known())
    with pytest.raises(ValueError, match=message):
        sampler.sample(**{"S": 2, "batch_size": 1, "shape": SHAPE, "verbose": False, **arguments})


def test_a_scheduler_that_there_is_not() -> None:
    with pytest.raises(ValueError, match=r"has no scheduler 'NoSuchScheduler'"):
        SchedulerSampler(Known(), "NoSuchScheduler").sample(2, 1, SHAPE)


def test_fast_is_faster_than_usual() -> None:
    assert FAST.steps * 2 <= USUAL.steps
    assert FAST.title == f"{SAMPLERS[FAST.sampler].title}, {FAST.steps} steps"


def begun(name: str, start: Start, steps: int = 20, model: Known | None = None, **more) -> torch.Tensor:
    """Latents from a start, without guidance; ``model.asked`` counts the steps."""
    count = len(start.latents)
    cond = {"c_concat": [torch.zeros(count, 3, 64, 64)]}
    generator = [torch.Generator().manual_seed(seed) for seed in range(5, 5 + count)]
    return sample_latents(
        model or Known(spread=0.7), cond, None, steps=steps, scale=1.0, generator=generator, sampler=name,
        start=start, **more,
    )  # fmt: skip


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_less_is_taken_of_the_steps_the_nearer_is_the_source(name: str) -> None:
    source = torch.full((2, *SHAPE), 1.5)
    distances = []
    for denoise, steps in ((0.1, 2), (0.5, 10), (0.72, 14), (1.0, 20)):
        model = Known(spread=0.7)
        latents = begun(name, Start(source, denoise), model=model)
        assert len(model.asked) == steps + (name == "plms")
        distances.append((latents - source).abs().mean().item())
    assert distances[0] < 0.4 < distances[1] < distances[2] + 0.05  # LCM is quick
    assert distances[-1] > 0.6


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_start_in_the_middle_keeps_what_its_mask_keeps_and_seeds_apart(name: str) -> None:
    source, keep = torch.full((2, *SHAPE), -0.4), torch.zeros(2, 1, 8, 8)
    keep[..., :4] = 1.0
    latents = begun(name, Start(source, 0.6, keep))
    torch.testing.assert_close(latents[..., :4], source[..., :4], rtol=0, atol=0.15)
    assert (latents[..., 4:] - source[..., 4:]).abs().mean() > 0.15
    torch.testing.assert_close(latents[:1], begun(name, Start(source[:1], 0.6, keep[:1])))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_start_in_the_middle_is_told_its_steps_and_guided_in_a_part_of_them(name: str) -> None:
    told: list[int] = []
    model = Known(spread=0.7)
    cond = {"c_concat": [torch.zeros(1, 3, 64, 64)]}
    sample_latents(
        model, cond, "without", steps=20, scale=2.0, generator=torch.Generator().manual_seed(0), sampler=name,
        guidance_interval=(0.0, 0.5), start=Start(torch.zeros(1, *SHAPE), 0.5),
        on_step=lambda sampler: lambda start, index: told.append(index),
    )  # fmt: skip
    assert told == list(range(10))
    assert model.asked.count("without") == 5 + (name == "plms")


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_start_from_noise_is_the_plain_run(name: str) -> None:
    source = torch.full((2, *SHAPE), 1.5)
    plain = begun(name, Start(source, 1.0, None, from_noise=True))
    cond = {"c_concat": [torch.zeros(2, 3, 64, 64)]}
    generator = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    same = sample_latents(
        Known(spread=0.7), cond, None, steps=20, scale=1.0, generator=generator, sampler=name
    )
    torch.testing.assert_close(plain, same, rtol=0, atol=0)


def test_places_that_a_schedule_does_not_have() -> None:
    sampler = SAMPLERS["euler"].make(Known())
    sampler.make_schedule(4, verbose=False)
    with pytest.raises(ValueError, match="got place 4; expected 0 to 3"):
        sampler.decode(torch.zeros(1, *SHAPE), None, 5)
    with pytest.raises(ValueError, match="it is DDIM's alone"):
        sampler.make_schedule(4, ddim_eta=0.5)
