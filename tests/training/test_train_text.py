"""The text encoder's own lesson: prompts with answers, and a run that resumes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tiny_training import resumed_exactly, write_model

from cldm.model import create_model
from controlnet.storybook.dataset import draw_prompts, draw_scene
from controlnet.storybook.scenes.prompts import named_in
from controlnet.storybook.train_text import QUESTIONS, Prompts, TextTraining, train_text
from ldm.weights import read_state_dict, save_state_dict

ROOT = Path(__file__).resolve().parents[2]


def test_prompts_of_a_layout_differ_and_come_back() -> None:
    prompts = draw_prompts(5, 8)
    assert prompts == draw_prompts(5, 8)
    assert prompts[:3] == draw_prompts(5, 3)
    assert len(set(prompts)) > 5
    colours = {named_in(prompt).get("house") for prompt in draw_prompts(3, 60)}
    assert draw_scene(3).attributes["house"]
    assert len(colours) > 4  # the look is not the seed's own


def test_answers_are_what_the_prompt_says() -> None:
    prompts = Prompts(first_seed=3, layouts=2, prompts=20)
    assert len(prompts) == 40
    for index in (0, 7, 39):
        item = prompts[index]
        said = {
            name: values[answer - 1]
            for (name, values), answer in zip(QUESTIONS.items(), item["answers"].tolist(), strict=True)
            if answer
        }
        assert said == named_in(item["txt"])
    assert prompts.describe(39) == "prompt 19 of the layout of seed 4"


@pytest.fixture
def settings(tmp_path):
    torch.manual_seed(0)
    model = write_model(tmp_path / "model.yaml")
    save_state_dict(create_model(model).state_dict(), tmp_path / "base.safetensors")
    settings = OmegaConf.load(ROOT / "configs" / "train" / "tiny_text.yaml")
    toy = {"layouts": 8, "prompts": 8, "batch_size": 16, "max_steps": 60, "keep": 0.01, "save_every": 60}
    return OmegaConf.merge(settings, toy, {"model": model, "base": str(tmp_path / "base.safetensors")})


@pytest.mark.filterwarnings("ignore")
def test_the_encoder_learns_and_nothing_else_changes(settings, tmp_path) -> None:
    weights = train_text(settings, tmp_path / "run")
    before, after = read_state_dict(settings.base), read_state_dict(weights)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("cond_stage_model.") for name in changed)
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    reading = [float(line.split(",")[lines[0].split(",").index("reading")]) for line in lines[1:]]
    assert reading[-1] < 0.75 * reading[0]


@pytest.mark.filterwarnings("ignore")
def test_the_lesson_resumes_exactly(settings, tmp_path) -> None:
    resumed_exactly(train_text, OmegaConf.merge(settings, {"max_steps": 6, "save_every": 1}), tmp_path)


def test_the_former_embedding_is_kept_in_eval_mode_and_without_gradients(settings) -> None:
    encoder = create_model(settings.model).cond_stage_model
    training = TextTraining(encoder, 1e-3, 1.0, 10).train()
    assert not training.former.training
    assert not any(parameter.requires_grad for parameter in training.former.parameters())
    assert all(parameter.requires_grad for parameter in training.encoder.parameters())
