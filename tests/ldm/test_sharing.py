"""What is computed once for a whole sampling: what attention makes of the text."""

from __future__ import annotations

import pytest
import torch
from golden_data import fill_by_recipe, load_golden, relative_error, tiny_config

from cldm.cldm import ControlLDM
from cldm.ddim_hacked import DDIMSampler
from ldm.models.diffusion.guidance import FURTHER, WINDOW, guided_output
from ldm.modules.attention import CrossAttention
from ldm.modules.regional import REGIONAL, RegionalPrompts
from ldm.modules.sharing import TextMemory
from ldm.util import instantiate_from_config

SHAPE = (4, 8, 8)
WORDS = 77


@pytest.fixture(scope="module")
def model() -> ControlLDM:
    _, case = load_golden("sampling")
    return fill_by_recipe(instantiate_from_config(tiny_config(case))).eval()


@pytest.fixture(scope="module")
def conds(model: ControlLDM) -> tuple[dict, dict]:
    golden, case = load_golden("sampling")
    with torch.no_grad():
        text, negative = map(model.get_learned_conditioning, (case["prompt"], case["negative"]))
    cond, uncond = ({"c_concat": [golden["hint"]], "c_crossattn": [each]} for each in (text, negative))
    return cond, uncond


@pytest.fixture
def projections(monkeypatch) -> list[CrossAttention]:
    """Grows by each layer that makes keys and values of a text."""
    seen: list[CrossAttention] = []
    kept = CrossAttention._keys_and_values

    def noted(self: CrossAttention, context: torch.Tensor):
        if context.shape[1] == WORDS:
            seen.append(self)
        return kept(self, context)

    monkeypatch.setattr(CrossAttention, "_keys_and_values", noted)
    return seen


def sample(model: ControlLDM, cond: dict, uncond: dict, steps: int = 3, **options) -> torch.Tensor:
    x_T = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    guidance = {"unconditional_guidance_scale": 7.0, "unconditional_conditioning": uncond, **options}
    return DDIMSampler(model).sample(steps, 2, SHAPE, cond, x_T=x_T, verbose=False, **guidance)[0]


def test_keys_and_values_of_the_text_are_computed_once_in_a_sampling(model, conds, projections) -> None:
    first = sample(model, *conds)
    assert len(projections) == len(set(projections)) == 10, "each layer once in three steps"
    once = len(projections)
    again = sample(model, *conds)
    assert len(projections) == 2 * once, "another sampling remembers nothing of this one"
    assert torch.equal(first, again)


def test_what_is_remembered_is_what_would_be_computed(model, conds, monkeypatch) -> None:
    remembered = sample(model, *conds, steps=4, ucg_schedule=[1.0, 5.0, 1.0, 5.0])
    monkeypatch.setattr(TextMemory, "recall", lambda layer, context, compute: compute())
    assert torch.equal(sample(model, *conds, steps=4, ucg_schedule=[1.0, 5.0, 1.0, 5.0]), remembered)


def test_guess_mode_and_unguided_steps_have_their_own_texts(model, conds, projections) -> None:
    cond, uncond = conds
    sample(model, cond, {**uncond, "c_concat": None}, ucg_schedule=[1.0, 5.0, 1.0])
    rows = {layer: projections.count(layer) for layer in projections}
    assert set(rows.values()) <= {2}, "alone and in a pair; a control copy that steers one half looks again"


@torch.no_grad()
def test_texts_that_somebody_puts_in_place_of_others_are_seen(model, conds) -> None:
    cond, uncond = map(model.prepare_condition, conds)
    x, t = torch.randn(2, *SHAPE), torch.tensor([501, 501])
    before = guided_output(model, x, t, cond, uncond, 5.0)
    other = [-cond["c_crossattn"][0]]
    changed = guided_output(model, x, t, {**cond, "c_crossattn": other}, uncond, 5.0)
    fresh, _ = map(model.prepare_condition, ({**conds[0], "c_crossattn": other}, conds[1]))
    assert torch.equal(changed, guided_output(model, x, t, fresh, uncond, 5.0))
    assert relative_error(changed, before) > 1e-3
    assert torch.equal(guided_output(model, x, t, cond, uncond, 5.0), before)
    alone = model.apply_model(x, t, {**cond, "c_crossattn": other})
    assert torch.equal(alone, model.apply_model(x, t, {**conds[0], "c_crossattn": other}))


def test_class_prompts_and_several_controls_remember_the_same_text(
    model, conds, projections, monkeypatch
) -> None:
    cond, uncond = conds
    places = RegionalPrompts(cond["c_crossattn"][0][:, None] * -0.5, torch.rand(2, 1, *SHAPE[1:]))
    further = {"c_concat": [1 - cond["c_concat"][0]], WINDOW: (0.0, 0.5)}
    pair = [{**each, FURTHER: [further]} for each in (cond, uncond)]
    pair[0][REGIONAL] = places
    options = {"steps": 4, "ucg_schedule": [1.0, 5.0, 5.0, 1.0]}
    remembered = sample(model, *pair, **options)
    assert max(projections.count(layer) for layer in projections) == 2, "alone and in a pair"
    monkeypatch.setattr(TextMemory, "recall", lambda layer, context, compute: compute())
    assert torch.equal(sample(model, *pair, **options), remembered)
    assert relative_error(sample(model, cond, uncond, **options), remembered) > 1e-3
