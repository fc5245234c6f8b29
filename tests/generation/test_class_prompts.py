"""A prompt for each class, from a request to pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from golden_data import fill_by_recipe, load_golden, tiny_config

from annotator.ade20k import CLASSES
from controlnet.conditions import all_conditions
from controlnet.evaluate import evaluation
from controlnet.evaluate.evaluation import Case, Sampling
from controlnet.generation.checks import RequestError
from controlnet.generation.generator import Generator
from controlnet.generation.request import Request
from controlnet.generation.samplers import SAMPLERS
from controlnet.generation.sampling import Control, control_scales, guided_conditions, sample_latents
from controlnet.generation.words import regional_prompts
from ldm.modules.regional import RegionalPrompts
from ldm.util import instantiate_from_config

LABELS = np.full((64, 64), CLASSES.index("sky"), np.uint8)
LABELS[32:], LABELS[30:50, 8:30] = CLASSES.index("grass"), CLASSES.index("house")
LONG = "a house, " + "red green blue yellow " * 25


@pytest.fixture(scope="module")
def generator() -> Generator:
    """Of a small model of Stable Diffusion 1.5's classes."""
    _, case = load_golden("sampling")
    model = fill_by_recipe(instantiate_from_config(tiny_config(case))).eval()
    return Generator(model, name="small", resolution=64)


def picture(generator: Generator, **settings) -> np.ndarray:
    asked = {"input_image": None, "hint": LABELS, "prompt": "a house", "ddim_steps": 2, "seed": 5, **settings}
    return np.stack(generator.generate(Request(**asked)).pictures).astype(int)


def test_no_class_prompts_change_no_bit_and_equal_ones_hardly_any(generator, monkeypatch):
    plain = picture(generator)
    spied: list[object] = []
    monkeypatch.setattr(RegionalPrompts, "__post_init__", lambda self: spied.append(self), raising=True)
    assert (picture(generator, class_prompts={"house": " "}, prompt_syntax=True) == plain).all()
    assert not spied
    same = picture(generator, class_prompts={"house": "a house", "sky": "a house"})
    assert spied and np.abs(same - plain).max() <= 2
    other = picture(generator, class_prompts={"house": "red brick"})
    assert np.abs(other - plain).mean() > 0.5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_and_its_batches(generator, sampler):
    asked = {"class_prompts": "house: red brick; sky: a storm", "sampler": sampler}
    both = picture(generator, num_samples=2, per_sample_seeds=True, **asked)
    alone = picture(generator, seed=6, **asked)
    assert np.abs(both[1] - alone[0]).max() <= 2
    assert not (both[1] == picture(generator, seed=6, sampler=sampler)[0]).all()


@pytest.mark.parametrize(
    "more",
    [{"guess_mode": True}, {"guidance_start": 0.5}, {"scale": 1.0}, {"prompt": LONG, "prompt_syntax": True}],
)
def test_what_else_a_request_says_is_kept_to(generator, more):
    plain, local = picture(generator, **more), picture(generator, class_prompts={2: "a storm"}, **more)
    assert not (plain == local).all()


def test_attention_in_slices_sees_the_same(generator):
    asked = {"class_prompts": {"house": "red brick"}, "num_samples": 2}
    whole = picture(generator, **asked)
    generator.save_memory = True
    try:
        assert np.abs(picture(generator, **asked) - whole).max() <= 2
    finally:
        generator.save_memory = False


def test_a_map_beside_another_condition(generator):
    hint = np.zeros((64, 64), np.uint8)
    asked = {"condition": "canny", "hint": hint, "class_map": LABELS[::2, ::2]}
    plain = picture(generator, condition="canny", hint=hint)
    assert not (picture(generator, class_prompts={"house": "red brick"}, **asked) == plain).all()
    assert (picture(generator, **asked) == plain).all(), "a map alone does nothing"


@torch.inference_mode()
def test_the_pictures_of_a_batch_have_prompts_of_their_own(generator):
    """As the evaluation makes them: another map and other texts for each row."""
    model, maps = generator.model, [LABELS, LABELS[:, ::-1]]
    texts = [{"house": "red brick", "sky": "a storm"}, {"house": "blue wood", "sky": "noon"}]
    parts = [regional_prompts(model, t, m, 1, (8, 8)) for t, m in zip(texts, maps, strict=True)]
    joined = RegionalPrompts(*(torch.cat([getattr(p, n) for p in parts]) for n in ("texts", "shares")))

    def latents(rows: list[int], regional: RegionalPrompts) -> torch.Tensor:
        pictures = np.stack([np.repeat(maps[i][..., None], 3, 2) for i in rows])
        cond, uncond = guided_conditions(
            model, pictures, ["a"] * len(rows), [""] * len(rows), control_scales(1.0, 13), regional=regional
        )
        noise = [torch.Generator().manual_seed(i) for i in rows]
        return sample_latents(model, cond, uncond, steps=2, scale=5.0, generator=noise)

    both = latents([0, 1], joined)
    torch.testing.assert_close(both[1:], latents([1], parts[1]), rtol=1e-3, atol=1e-3)


def test_the_evaluation_takes_cases_with_and_without(generator):
    plain = Case(np.repeat(LABELS[..., None], 3, 2), LABELS, "a house")
    own = replace(plain, class_prompts={"house": "red brick"})
    sampling = Sampling(2, scale=5.0)
    (alone,) = evaluation.generate(generator.model, [plain], [7], sampling)
    changed, same = evaluation.generate(generator.model, [own, plain], [7, 7], sampling)
    assert np.abs(same.astype(int) - alone).max() <= 2 and np.abs(changed.astype(int) - alone).mean() > 0.5


@torch.inference_mode()
def test_beside_several_controls(generator):
    model, more = generator.model, Control(np.zeros((64, 64, 3), np.uint8), control_scales(0.5, 13))
    regional = regional_prompts(model, {"house": "red brick"}, LABELS, 1, (8, 8))
    picture = np.repeat(LABELS[..., None], 3, 2)

    def latents(**given) -> torch.Tensor:
        scales = control_scales(1.0, 13)
        cond, uncond = guided_conditions(
            model, picture, ["a"], [""], scales, unconditional=0.0, further=[more], **given
        )
        noise = torch.Generator().manual_seed(1)
        return sample_latents(model, cond, uncond, steps=2, scale=5.0, generator=noise)

    assert not torch.allclose(latents(regional=regional), latents(), atol=1e-2)


REFUSED = [
    ({"class_prompts": {"boat": "x"}}, "The map holds no boat; it holds sky, grass, house."),
    ({"class_prompts": {"hause": "x"}}, "There is no class 'hause': did you mean house"),
    (
        {"class_prompts": {150: "x"}},
        "There is no class 150: it must be one of ADE20K, by name or by its index",
    ),
    ({"class_prompts": "red brick"}, "'red brick' names no class: write class: words"),
    ({"class_prompts": "house: a; house: b"}, "The class house has two prompts"),
    ({"class_prompts": {"house": "a", 25: "b"}}, "The class house has two prompts"),
    ({"class_prompts": {"house": 3}}, "The prompt for the class house must be text, got 3."),
    ({"class_prompts": ["house"]}, "class_prompts must be text by class"),
    ({"class_prompts": dict.fromkeys(range(25), "x")}, "prompts for 25 classes; 24 is the most"),
    ({"prompt_syntax": 1}, "prompt_syntax must be true or false, got 1."),
    (
        {"class_prompts": {"sky": "x"}, "condition": "canny"},
        "class_prompts need to know where the classes are, and canny does not say: bring a map as class_map",
    ),
    ({"class_map": LABELS[:16]}, "class_map is 64x16 pixels, the picture 64x64: they must show the same."),
    ({"class_map": LABELS.astype(int)}, "class_map must be class indices, uint8"),
    ({"class_map": LABELS + 200}, "class_map holds class indices from 0 to 149, got"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_what_cannot_be_is_told_in_one_line(settings, message):
    with pytest.raises(RequestError) as told:
        Request(**{"input_image": None, "hint": LABELS, "prompt": "", **settings})
    assert message in str(told.value) and "\n" not in str(told.value)


def test_a_map_that_is_detected_is_looked_at_when_it_is_there(generator):
    class Sky:
        def labels(self, picture: np.ndarray) -> np.ndarray:
            return np.full(picture.shape[:2], 2, np.uint8)

    small = Generator(generator.model, {"seg": Sky()}, resolution=64)
    request = Request(np.zeros((64, 64, 3), np.uint8), "", class_prompts={"boat": "x"}, ddim_steps=1)
    with pytest.raises(RequestError, match=r"The map holds no boat; it holds sky\."):
        small.generate(request)


def test_what_is_cut_is_said(generator):
    asked = {"input_image": None, "hint": LABELS, "prompt": LONG, "ddim_steps": 1, "seed": 1, "a_prompt": ""}
    cut = generator.generate(Request(**asked, class_prompts={"house": LONG})).remarks
    assert [line.split(" has ")[0] for line in cut[-2:]] == ["The prompt", "The prompt for house"]
    assert "is cut; prompt_syntax takes prompts of any length." in cut[-1] and "104 of 75 tokens" in cut[-1]
    assert not generator.generate(Request(**asked, prompt_syntax=True)).remarks


def test_every_condition_takes_prompts_for_classes_with_a_map():
    for name, condition in all_conditions().items():
        hint = LABELS if name == "seg" else np.zeros((64, 64, 3)[: condition.hint_dimensions], np.uint8)
        Request(None, "", hint=hint, condition=name, class_map=LABELS, class_prompts="sky: a storm")
