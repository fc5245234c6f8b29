"""Several controls over one base: diffusers' sums and windows, and what must not change anything."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from golden_data import fill_by_recipe, load_golden, relative_error, tiny_config

from cldm.cldm import ControlLDM, ControlNet
from cldm.steering import control_outputs, steering
from controlnet.generation.samplers import SAMPLERS
from controlnet.generation.sampling import Control, control_scales, guided_conditions, sample_latents
from controlnet.generation.several import HINT_GUIDANCE
from controlnet.generation.several_run import control_factors
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.guidance import FURTHER, REGION, WINDOW, guided_output, join_conditions
from ldm.util import instantiate_from_config

SIZE, STEPS, SCALES = 64, 4, [1.0] * 13
PROMPTS, NEGATIVE = ["a house", "a boat"], ["", ""]


@pytest.fixture(scope="module")
def model() -> ControlLDM:
    _, case = load_golden("sampling")
    return fill_by_recipe(instantiate_from_config(tiny_config(case))).eval()


@pytest.fixture(scope="module")
def other(model: ControlLDM) -> ControlNet:
    """A second control for the same base."""
    _, case = load_golden("sampling")
    return fill_by_recipe(instantiate_from_config(tiny_config(case)).control_model, salt=5).eval()


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def latents(
    model: ControlLDM,
    first: Control,
    *further: Control,
    sampler: str = "ddim",
    steps: int = STEPS,
    **more: Any,
) -> torch.Tensor:
    """Two samples with a seed each."""
    with torch.inference_mode():
        cond, uncond = guided_conditions(
            model, first.picture, PROMPTS, NEGATIVE, first.scales, first.network,
            unconditional=first.unconditional, window=first.window, region=first.region, further=further,
        )  # fmt: skip
        generator = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
        options = {"scale": 5.0, "generator": generator, **more}
        return sample_latents(model, cond, uncond, steps=steps, sampler=sampler, **options)


@pytest.fixture(scope="module")
def plain(model: ControlLDM) -> torch.Tensor:
    return latents(model, Control(picture(1), SCALES))


@pytest.fixture
def calls(model: ControlLDM, other: ControlNet, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Which control was asked at each step, and which hints were embedded."""
    seen: dict[str, list[str]] = {"asked": [], "embedded": []}
    for name, network in (("own", model.control_model), ("other", other)):
        forward, embed = network.forward, network.embed_hint
        monkeypatch.setattr(
            network, "forward", lambda f=forward, n=name, **given: seen["asked"].append(n) or f(**given)
        )
        monkeypatch.setattr(
            network, "embed_hint", lambda hint, f=embed, n=name: seen["embedded"].append(n) or f(hint)
        )
    return seen


# What changes nothing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("guess", [False, True], ids=["plain", "guess"])
def test_what_changes_nothing_changes_no_bit(sampler, guess, model, other):
    """Strength 0 beside it, all of the picture, and all of the steps."""
    scales, share = control_scales(0.8, 13, guess), float(not guess)
    first = Control(picture(1), scales, share)
    alone = latents(model, first, sampler=sampler)
    spelled = Control(picture(1), scales, share, window=(0.0, 1.0), region=np.full((8, 8), 255, np.uint8))
    idle = Control(picture(2), [0.0] * 13, network=other)
    assert torch.equal(latents(model, first, idle, sampler=sampler), alone)
    assert torch.equal(latents(model, spelled, sampler=sampler), alone)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_control_that_never_acts_is_none(sampler, model, other):
    """By its strength, its region or its window, as the first or beside it; and it is not asked."""
    none = latents(model, Control(picture(1), [0.0] * 13), sampler=sampler)
    outside = np.zeros((SIZE, SIZE), np.uint8)
    for idle in (
        Control(picture(1), SCALES, region=outside),
        Control(picture(1), SCALES, window=(0.5, 0.5)),
        Control(picture(1), SCALES, network=other, region=outside),
    ):
        assert torch.equal(latents(model, idle, sampler=sampler), none)
    first = Control(picture(1), SCALES)
    assert not torch.equal(latents(model, first, sampler=sampler), none)
    idle = Control(picture(2), [0.0] * 13)
    assert torch.equal(
        latents(model, idle, first, sampler=sampler), latents(model, first, sampler=sampler)
    ), "strength 0 in the first place"


def test_no_control_computes_where_none_acts(model, other, calls):
    window = Control(picture(1), SCALES, window=(0.25, 0.75))
    latents(model, window, Control(picture(2), SCALES, network=other, window=(0.5, 1.0)))
    assert calls["asked"] == ["own", "own", "other", "other"], "in four steps"
    assert sorted(calls["embedded"]) == ["other", "other", "own", "own"], "once for each half"
    calls["asked"].clear()
    latents(model, Control(picture(1), [0.0] * 13), Control(picture(2), [0.0] * 13, network=other))
    assert calls["asked"] == []


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_order_of_two_does_not_matter(sampler, model, other):
    controls = (
        Control(picture(1), [0.7] * 13, window=(0.0, 0.5), region=np.tile(np.uint8([0, 255]), (4, 1))),
        Control(picture(2), control_scales(0.6, 13, True), 0.0, network=other),
    )
    one_way = latents(model, *controls, sampler=sampler)
    assert torch.equal(latents(model, *reversed(controls), sampler=sampler), one_way)
    assert not torch.equal(latents(model, controls[0], sampler=sampler), one_way)


def test_the_order_of_three_matters_as_little_as_that_of_a_sum(model, other):
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([600])
    with torch.no_grad():
        text = model.get_learned_conditioning(["a"])
        parts = [
            {
                "c_concat": [torch.rand(1, 3, SIZE, SIZE)],
                "control_scales": [scale] * 13,
                "control_model": network,
            }
            for scale, network in ((0.7, None), (0.6, other), (0.4, other))
        ]
        ways = [
            control_outputs(model, x, t, text, {**first, FURTHER: further})
            for first, *further in itertools.permutations(parts)
        ]
    for way in ways[1:]:
        for outputs in zip(way, ways[0], strict=True):
            assert relative_error(*outputs) <= 1e-6


# What it is -------------------------------------------------------------------------------------------------


def test_twice_the_same_is_twice_the_strength(model, plain):
    half = Control(picture(1), [0.5] * 13)
    assert torch.equal(latents(model, half, half), plain)
    assert not torch.equal(latents(model, half), plain)


@pytest.mark.parametrize("shares", list(itertools.product((1.0, 0.6, 0.0), repeat=2)))
def test_shared_halves_give_what_separate_ones_give(shares, model, other, monkeypatch):
    controls = [
        Control(picture(seed), SCALES, share, network)
        for seed, share, network in zip((1, 2), shares, (None, other), strict=True)
    ]
    shared = latents(model, *controls)
    monkeypatch.setattr("cldm.steering.is_plain", lambda network: network is other)
    mixed = latents(model, *controls)
    monkeypatch.setattr("cldm.steering.is_plain", lambda network: False)
    separate = latents(model, *controls)
    monkeypatch.setattr("ldm.models.diffusion.guidance.join_conditions", lambda cond, uncond: None)
    one_by_one = latents(model, *controls)
    for result in (mixed, separate, one_by_one):
        assert relative_error(result, shared) <= 1e-5


def test_halves_that_share_meet_one_that_does_not(model, other, monkeypatch):
    """Only the second network computes what both halves have in common once, in steps where it is alone."""
    controls = [Control(picture(1), SCALES, window=(0.0, 0.5)), Control(picture(2), SCALES, network=other)]
    shared = latents(model, *controls)
    plain = {id(model.model.diffusion_model), id(other)}
    monkeypatch.setattr("cldm.steering.is_plain", lambda network: id(network) in plain)
    assert relative_error(latents(model, *controls), shared) <= 1e-5


def test_a_sample_depends_on_its_seed_alone(model, other):
    pictures = np.stack([picture(1), picture(2)])
    region = np.tile(np.uint8([255, 100]), (2, 1))

    def controls(rows: slice) -> list[Control]:
        return [
            Control(pictures[rows], SCALES, window=(0.0, 0.5)),
            Control(pictures[rows][:, ::-1], SCALES, 0.0, other, region=region),
        ]

    both = latents(model, *controls(slice(0, 2)))
    first, second = controls(slice(1, 2))
    with torch.inference_mode():
        cond, uncond = guided_conditions(
            model, first.picture, PROMPTS[1:], NEGATIVE[1:], SCALES, window=first.window, further=[second]
        )
        generator = [torch.Generator().manual_seed(8)]
        alone = sample_latents(model, cond, uncond, steps=STEPS, scale=5.0, generator=generator)
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-4)


def test_a_region_steers_where_it_is(model, plain, monkeypatch):
    left = np.zeros((SIZE, SIZE), np.uint8)
    left[:, : SIZE // 2] = 255
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([600])
    region = torch.zeros(1, 1, 8, 8)
    region[..., :4] = 1.0
    shapes = []
    with torch.no_grad():
        text = model.get_learned_conditioning(["a"])
        cond = {"c_concat": [torch.rand(1, 3, SIZE, SIZE)]}
        for pools in (False, True):
            monkeypatch.setattr(model.control_model, "global_average_pooling", pools)
            everywhere = control_outputs(model, x, t, text, cond)
            within = control_outputs(model, x, t, text, {**cond, REGION: region})
            shapes.append([output.shape for output in within])
            for part, whole in zip(within, everywhere, strict=True):
                if middle := part.shape[-1] // 2:
                    assert torch.equal(part[..., :middle], whole.expand_as(part)[..., :middle])
                    assert not part[..., middle:].any() and whole.any()
    assert shapes[0] == shapes[1], "one that was averaged gets its places back"
    monkeypatch.undo()
    soft = latents(model, Control(picture(1), SCALES, region=np.full((SIZE, SIZE), 128, np.uint8)))
    weak = latents(model, Control(picture(1), [128 / 255] * 13))
    assert relative_error(soft, weak) <= 1e-5
    hard = latents(model, Control(picture(1), SCALES, region=left))
    assert not torch.equal(hard, plain)


def test_a_window_is_read_by_samplers_alone(model):
    cond = {"c_concat": [torch.zeros(1, 3, SIZE, SIZE)], "c_crossattn": [torch.zeros(1, 77, 64)]}
    x, t = torch.zeros(1, 4, 8, 8), torch.tensor([1])
    with pytest.raises(ValueError, match="control_window outside of a run"):
        model.apply_model(x, t, {**cond, WINDOW: (0.0, 0.5)})
    left = model.condition_at_step({**cond, WINDOW: (0.0, 0.5), FURTHER: [cond]}, 3, 4)
    assert left["c_concat"] is None and WINDOW not in left and left[FURTHER] == [cond]
    assert model.condition_at_step(cond, 3, 4) is cond


def test_an_apply_model_of_somebody_else_is_not_given_what_it_would_not_see(model, monkeypatch):
    monkeypatch.setattr(model, "apply_model", lambda x, t, cond: x)
    for more in ({"further": [Control(picture(2), SCALES)]}, {"window": (0.0, 0.5)}):
        with pytest.raises(ValueError, match="one control throughout"):
            guided_conditions(model, picture(1), ["a"], [""], SCALES, **more)


def test_image_to_image_counts_the_steps_that_it_takes(model, calls):
    """As in diffusers, where a window is a share of the steps that are left."""
    with torch.inference_mode():
        cond, uncond = guided_conditions(model, picture(1), ["a"], [""], SCALES, window=(0.5, 1.0))
        sampler = DDIMSampler(model)
        sampler.make_schedule(8, verbose=False)
        noise = torch.randn(1, 4, 8, 8)
        guidance = {"unconditional_guidance_scale": 3.0, "unconditional_conditioning": uncond}
        sampler.decode(noise, cond, 4, verbose=False, **guidance)
        assert calls["asked"] == ["own"] * 2
        sampler.encode(noise, cond, 4, verbose=False, **guidance)
        assert calls["asked"] == ["own"] * 4


# Closer to the hint -----------------------------------------------------------------------------------------


class Says:
    """A model whose output is the factor of its control."""

    @staticmethod
    def apply_model(x: torch.Tensor, t: torch.Tensor, cond: dict[str, Any]) -> torch.Tensor:
        return torch.full_like(x, cond["control_scales"][0])


@pytest.mark.parametrize("scale", [1.5, 2.0, 3.0, 9.0, 30.0])
def test_the_mode_closer_adds_as_much_at_every_scale_of_guidance(scale, model):
    x, t = torch.zeros(1, 4, 8, 8), torch.zeros(1, dtype=torch.long)
    for mode, expected in (("balanced", 0.8), ("closer", 0.8 * HINT_GUIDANCE)):
        scales, share = control_factors(mode, 0.8, 13, scale)
        assert 0 < share <= 1 or scale == HINT_GUIDANCE
        cond, uncond = guided_conditions(model, picture(1), ["a"], [""], scales, unconditional=share)
        uncond = uncond if share else {**uncond, "control_scales": [0.0] * 13}
        found = guided_output(Says(), x, t, cond, uncond, scale)
        torch.testing.assert_close(found, torch.full_like(x, expected))


def test_closer_is_balanced_without_guidance_and_leaves_the_hint_out_below_its_own():
    assert control_factors("closer", 0.5, 2, 1.0) == control_factors("balanced", 0.5, 2, 1.0)
    assert control_factors("closer", 0.5, 2, 1.2) == ([0.5, 0.5], 0.0)


def test_scales_of_one_half_stay_there(model):
    """Both halves in one batch, whose first has the control at full strength and whose second at a third."""
    scales = control_scales(0.9, 13)
    cond, uncond = guided_conditions(model, picture(1), PROMPTS, NEGATIVE, scales, unconditional=1 / 3)
    joined = join_conditions(cond, uncond)
    wanted = [pytest.approx([0.9, 0.9, 0.3, 0.3])] * 13
    assert [scale.flatten().tolist() for scale in joined["control_scales"]] == wanted
    longer = join_conditions(cond, {**uncond, "control_scales": [0.3] * 14})  # scripts have more
    assert len(longer["control_scales"]) == 13
    x, t = torch.randn(2, 4, 8, 8), torch.full((2,), 500)
    with torch.inference_mode():
        both = model.apply_model(torch.cat([x, x]), torch.cat([t, t]), joined)
        halves = [model.apply_model(x, t, half) for half in (cond, uncond)]
        stronger = model.apply_model(x, t, {**uncond, "control_scales": scales})
    assert relative_error(both, torch.cat(halves)) <= 1e-5
    assert relative_error(halves[1], stronger) > 1e-3


def test_a_factor_for_each_row_leaves_the_type_of_an_output(other):
    """A half-precision network whose condition is float32."""
    cond = {"c_concat": [torch.rand(2, 3, 64, 64)], "control_scales": [torch.ones(2, 1, 1, 1)] * 13}
    network = copy.deepcopy(other).to(torch.bfloat16)
    context = torch.randn(2, 77, 32)
    outputs = steering(network, torch.randn(2, 4, 8, 8), torch.tensor([5, 5]), context, cond, SCALES)
    assert {output.dtype for output in outputs} == {torch.bfloat16}
