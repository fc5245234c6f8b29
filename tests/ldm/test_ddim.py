"""The DDIM sampler against the original's runs and diffusers' scheduler; odd step counts, stops, threads,
seeds.
"""

from __future__ import annotations

import threading

import pytest
import torch
from golden_data import fill_by_recipe, load_golden, relative_error, tiny_config

from cldm.cldm import ControlLDM
from cldm.ddim_hacked import DDIMSampler
from ldm.models.diffusion.ddpm import DDPM
from ldm.models.diffusion.guidance import join_conditions
from ldm.modules.diffusionmodules.openaimodel import ResBlock
from ldm.util import instantiate_from_config

SHAPE = (4, 8, 8)


@pytest.fixture(scope="module")
def model() -> ControlLDM:
    _, case = load_golden("sampling")
    return fill_by_recipe(instantiate_from_config(tiny_config(case))).eval()


@pytest.fixture(scope="module")
def conditions(model: ControlLDM) -> tuple[dict, dict]:
    golden, case = load_golden("sampling")
    with torch.no_grad():
        prompt, negative = map(model.get_learned_conditioning, (case["prompt"], case["negative"]))
    hint = golden["hint"]
    return ({"c_concat": [hint], "c_crossattn": [text]} for text in (prompt, negative))


@pytest.fixture(scope="module")
def conds(conditions) -> tuple[dict, dict]:
    cond, uncond = conditions
    return cond, uncond


def guess_scales(strength: float) -> list[float]:
    return [strength * 0.825 ** (12 - i) for i in range(13)]


@pytest.mark.parametrize("case_number", range(5))
def test_runs_equal_the_original(case_number: int, model: ControlLDM, conds: tuple[dict, dict]) -> None:
    golden, recorded = load_golden("sampling")
    case = recorded["cases"][case_number]
    cond, uncond = conds
    scales = guess_scales(case["strength"]) if case["guess"] else [case["strength"]] * 13
    torch.manual_seed(123 + case_number)
    samples, intermediates = DDIMSampler(model).sample(
        case["S"],
        2,
        SHAPE,
        {**cond, "control_scales": scales},
        eta=case["eta"],
        x_T=golden["x_T"],
        mask=golden["mask"] if case.get("inpaint") else None,
        x0=golden["x0"] if case.get("inpaint") else None,
        unconditional_guidance_scale=case["scale"],
        unconditional_conditioning={**uncond, "c_concat": None} if case["guess"] else uncond,
        verbose=False,
    )
    assert relative_error(samples, golden[f"sample.{case_number}"]) <= 1e-3
    assert len(intermediates["x_inter"]) == len(intermediates["pred_x0"]) >= 3


def test_seed_and_velocity_equal_the_original(
    model: ControlLDM, conds: tuple[dict, dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    golden, _ = load_golden("sampling")
    cond, uncond = conds
    guidance = {"unconditional_conditioning": uncond, "verbose": False}
    torch.manual_seed(2024)
    samples, _ = DDIMSampler(model).sample(5, 2, SHAPE, cond, unconditional_guidance_scale=9.0, **guidance)
    assert relative_error(samples, golden["sample.seed2024"]) <= 1e-3

    monkeypatch.setattr(model, "parameterization", "v")
    torch.manual_seed(5)
    samples, _ = DDIMSampler(model).sample(
        5, 2, SHAPE, cond, x_T=golden["x_T"], unconditional_guidance_scale=4.0, **guidance
    )
    assert relative_error(samples, golden["sample.v"]) <= 1e-3
    used = {"hint", "mask", "x0", "x_T", "sample.seed2024", "sample.v", *(f"sample.{i}" for i in range(5))}
    assert used == set(golden), "every tensor is checked"


class Analytic(DDPM):
    """A model of data from N(0.5, spread), whose best prediction is known exactly."""

    def __init__(self, parameterization: str = "eps", spread: float = 0.0):
        network = {"target": "torch.nn.Identity"}
        schedule = {"linear_start": 0.00085, "linear_end": 0.012}
        super().__init__(network, use_ema=False, parameterization=parameterization, **schedule)
        self.spread, self.calls = spread, 0

    def apply_model(self, x: torch.Tensor, t: torch.Tensor, cond: object) -> torch.Tensor:
        self.calls += 1
        alpha = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        noise = (1 - alpha).sqrt() * (x - alpha.sqrt() * 0.5) / (alpha * self.spread**2 + 1 - alpha)
        start = (x - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        return {"eps": noise, "x0": start, "v": self.get_v(start, noise, t)}[self.parameterization]


@pytest.mark.parametrize("parameterization", ["eps", "x0", "v"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_every_parameterization_finds_the_point(parameterization: str, eta: float) -> None:
    samples, _ = DDIMSampler(Analytic(parameterization)).sample(20, 2, SHAPE, eta=eta, verbose=False)
    assert (samples - 0.5).abs().max() < 0.15, "a step or two of noise from the point"


@pytest.mark.parametrize("steps", [1, 2, 3, 9, 27, 36, 37, 101, 333, 501, 999, 1000])
def test_step_counts_that_crashed(steps: int) -> None:
    model = Analytic()
    samples, _ = DDIMSampler(model).sample(steps, 1, SHAPE, verbose=False)
    assert model.calls == steps and samples.isfinite().all()
    with pytest.raises(ValueError, match="1001 DDIM steps"):
        DDIMSampler(model).sample(1001, 1, SHAPE, verbose=False)


def test_equals_diffusers_scheduler() -> None:
    from diffusers import DDIMScheduler

    model = Analytic()
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    x = start = torch.randn(2, *SHAPE)
    scheduler.set_timesteps(20)
    for t in scheduler.timesteps:
        x = scheduler.step(model.apply_model(x, t.expand(2), None) * 0.9, t, x).prev_sample
    model.apply_model = lambda x, t, c, exact=model.apply_model: exact(x, t, c) * 0.9
    samples, _ = DDIMSampler(model).sample(20, 2, SHAPE, x_T=start, verbose=False)
    torch.testing.assert_close(samples, x, rtol=1e-4, atol=1e-4)


def test_a_callback_stops_a_run_and_the_next_is_unaffected(
    model: ControlLDM, conds: tuple[dict, dict]
) -> None:
    cond, uncond = conds
    golden, _ = load_golden("sampling")
    sampler = DDIMSampler(model)
    seen: list[int] = []

    class Stop(Exception):
        pass

    def stop_at_2(step: int) -> None:
        seen.append(step)
        if step == 2:
            raise Stop

    def run(**options: object) -> torch.Tensor:
        torch.manual_seed(2024)
        guidance = {"unconditional_guidance_scale": 9.0, "unconditional_conditioning": uncond}
        return sampler.sample(5, 2, SHAPE, cond, verbose=False, **guidance, **options)[0]

    with pytest.raises(Stop):
        run(callback=stop_at_2)
    assert seen == [0, 1, 2]
    assert relative_error(run(), golden["sample.seed2024"]) <= 1e-3


def test_two_threads_with_two_strengths_on_one_model(model: ControlLDM, conds: tuple[dict, dict]) -> None:
    golden, _ = load_golden("sampling")
    cond, uncond = conds

    def run(strength: float) -> torch.Tensor:
        return DDIMSampler(model).sample(
            4,
            2,
            SHAPE,
            {**cond, "control_scales": [strength] * 5},
            x_T=golden["x_T"],
            unconditional_guidance_scale=5.0,
            unconditional_conditioning=uncond,
            verbose=False,
        )[0]

    alone = {strength: run(strength) for strength in (0.2, 1.0)}
    assert relative_error(alone[0.2], alone[1.0]) > 1e-2
    together: dict[float, torch.Tensor] = {}
    barrier = threading.Barrier(2)

    def work(strength: float) -> None:
        barrier.wait()
        together[strength] = run(strength)

    threads = [threading.Thread(target=work, args=(strength,)) for strength in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for strength, expected in alone.items():
        torch.testing.assert_close(together[strength], expected, rtol=1e-4, atol=1e-4)


def test_own_seeds_make_a_sample_again_alone(model: ControlLDM, conds: tuple[dict, dict]) -> None:
    cond, _ = conds

    def run(rows: slice, *seeds: int) -> torch.Tensor:
        part = {key: [value[0][rows]] for key, value in cond.items()}
        generator = [torch.Generator().manual_seed(seed) for seed in seeds]
        return DDIMSampler(model).sample(
            3, len(seeds), SHAPE, part, eta=1.0, generator=generator, verbose=False
        )[0]

    both, second = run(slice(0, 2), 7, 8), run(slice(1, 2), 8)
    torch.testing.assert_close(both[1:], second, rtol=1e-4, atol=1e-4)


def test_both_halves_of_guidance_go_in_one_batch(
    model: ControlLDM, conds: tuple[dict, dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    cond, uncond = conds
    unet_rows, control_rows, hint_rows = [], [], []
    unet, control = model.model.diffusion_model, model.control_model
    embed_hint = control.embed_hint
    monkeypatch.setattr(
        unet, "forward", lambda x, f=unet.forward, **kw: unet_rows.append(len(x)) or f(x, **kw)
    )
    monkeypatch.setattr(
        control, "forward", lambda x, f=control.forward, **kw: control_rows.append(len(x)) or f(x, **kw)
    )
    monkeypatch.setattr(control, "embed_hint", lambda hint: hint_rows.append(len(hint)) or embed_hint(hint))
    sampler = DDIMSampler(model)
    guidance = {"unconditional_guidance_scale": 5.0, "verbose": False}
    sampler.sample(2, 2, SHAPE, cond, unconditional_conditioning=uncond, **guidance)
    assert unet_rows == [4, 4] and control_rows == [4, 4]
    assert sum(hint_rows) <= 4, "the hint is embedded once per sampling, not once per step"
    unet_rows.clear(), control_rows.clear()
    sampler.sample(2, 2, SHAPE, cond, unconditional_conditioning={**uncond, "c_concat": None}, **guidance)
    assert unet_rows == [4, 4] and control_rows == [2, 2]


def test_texts_of_different_lengths_take_two_passes(model: ControlLDM, conds: tuple[dict, dict]) -> None:
    cond, uncond = conds
    short = {**uncond, "c_crossattn": [uncond["c_crossattn"][0][:, :40]]}
    x, t = torch.randn(2, *SHAPE), torch.tensor([500, 500])
    assert join_conditions(cond, short) is None
    with torch.no_grad():
        out = DDIMSampler(model).guided_output(x, t, cond, short, 3.0)
        a, b = model.apply_model(x, t, cond), model.apply_model(x, t, short)
    torch.testing.assert_close(out, b + 3.0 * (a - b), rtol=1e-4, atol=1e-4)


def test_encode_and_decode_are_inverse() -> None:
    """DDIM inversion gives back what it was given, and image to image ends at the data."""
    sampler = DDIMSampler(Analytic(spread=0.7))
    sampler.make_schedule(50, verbose=False)
    start = 0.5 + 0.7 * torch.randn(2, *SHAPE)
    noise, info = sampler.encode(start, None, 50, return_intermediates=5, verbose=False)
    assert len(info["intermediates"]) == len(info["intermediate_steps"]) >= 5
    back = sampler.decode(noise, None, 50, verbose=False)
    assert (noise.std() - 1).abs() < 0.1 and noise.mean().abs() < 0.2
    assert relative_error(back, start) < 0.05

    sampler = DDIMSampler(Analytic())
    sampler.make_schedule(50, verbose=False)
    start = torch.full((2, *SHAPE), 0.5)
    noisy = sampler.stochastic_encode(start, torch.tensor([25, 25]))
    assert (noisy - start).std() > 0.1
    torch.testing.assert_close(
        sampler.decode(noisy, None, 26, verbose=False), start, rtol=0, atol=0.15
    )  # the last step leaves 0.03
    with pytest.raises(ValueError, match="t_enc=51; expected 1 to 50"):
        sampler.encode(start, None, 51, verbose=False)


def test_options_of_the_original() -> None:
    model = Analytic()
    sampler = DDIMSampler(model)

    class Corrector:
        def modify_score(self, model, e_t, x, t, c, factor):
            return e_t * factor

    torch.manual_seed(0)
    plain, _ = sampler.sample(5, 1, SHAPE, verbose=False)
    torch.manual_seed(0)
    corrected, _ = sampler.sample(
        5, 1, SHAPE, score_corrector=Corrector(), corrector_kwargs={"factor": 1.0}, verbose=False
    )
    torch.testing.assert_close(plain, corrected)
    seen = []
    sampler.sample(5, 1, SHAPE, img_callback=lambda x0, i: seen.append((tuple(x0.shape), i)), verbose=False)
    assert seen == [((1, *SHAPE), i) for i in range(5)]
    context = torch.zeros(1, 2, 3)
    scheduled, _ = sampler.sample(
        5, 1, SHAPE, context, unconditional_conditioning=context, ucg_schedule=[1, 2, 3, 4, 5], verbose=False
    )
    assert scheduled.isfinite().all()
    for bad, message in [
        ({"ucg_schedule": [1, 2]}, "2 values in ucg_schedule; expected 5"),
        ({"mask": torch.ones(1)}, "needs x0"),
        ({"dynamic_threshold": 3}, "not supported"),
        ({"conditioning": torch.zeros(3, 2, 3)}, "a condition for a batch of 3; expected batch_size=1"),
        (
            {"unconditional_conditioning": {"c_crossattn": [torch.zeros(2, 2, 3)], "c_concat": None}},
            "an unconditional condition for a batch of 2; expected batch_size=1",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            sampler.sample(5, 1, SHAPE, verbose=False, **bad)


def test_silent_when_asked(capfd: pytest.CaptureFixture) -> None:
    DDIMSampler(Analytic()).sample(2, 1, SHAPE, verbose=False)
    assert capfd.readouterr() == ("", "")
    DDIMSampler(Analytic()).sample(2, 1, SHAPE)
    assert "DDIM Sampler" in capfd.readouterr().err


# What both halves of guidance share ------------------------------------------------------------------------


def rows_seen(model: ControlLDM, cond: dict, uncond: dict) -> list[int]:
    """How many rows each first residual block computes in a step."""
    seen: list[int] = []
    kept = ResBlock._forward

    def counted(self: ResBlock, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        if self in (model.control_model.input_blocks[1][0], model.model.diffusion_model.input_blocks[1][0]):
            seen.append(len(x))
        return kept(self, x, emb)

    counted.__module__ = "ldm.counted"  # or it would count as somebody else's, for whom nothing is shared
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResBlock, "_forward", counted)
        guidance = {"unconditional_guidance_scale": 5.0, "unconditional_conditioning": uncond}
        DDIMSampler(model).sample(1, 2, SHAPE, cond, verbose=False, **guidance)
    return seen


def test_the_first_part_of_both_halves_is_computed_once(model, conds):
    cond, uncond = conds
    assert rows_seen(model, cond, uncond) == [2, 2]
    assert rows_seen(model, cond, {**uncond, "c_concat": None}) == [2, 2]
    other = {**uncond, "c_concat": [cond["c_concat"][0].flip(0)]}
    assert rows_seen(model, cond, other) == [4, 4], "another hint steers the other half"


def test_nobody_elses_code_meets_a_batch_of_another_size(model, conds):
    block = model.model.diffusion_model.input_blocks[1][1].transformer_blocks[0]
    hook = block.attn1.register_forward_hook(lambda module, inputs, output: None)
    try:
        assert rows_seen(model, *conds) == [4, 4]
    finally:
        hook.remove()
    block.forward = block.forward
    try:
        assert rows_seen(model, *conds) == [4, 4]
    finally:
        del block.forward
    assert rows_seen(model, *conds) == [2, 2]


def test_shared_halves_give_what_separate_ones_give(model, conds, monkeypatch):
    cond, uncond = conds
    options = {"unconditional_guidance_scale": 7.0, "unconditional_conditioning": uncond, "verbose": False}
    x_T = torch.randn(2, *SHAPE)
    shared, _ = DDIMSampler(model).sample(3, 2, SHAPE, cond, x_T=x_T, **options)
    monkeypatch.setattr("cldm.steering.is_plain", lambda network: False)
    separate, _ = DDIMSampler(model).sample(3, 2, SHAPE, cond, x_T=x_T, **options)
    assert relative_error(shared, separate) <= 1e-5
