"""Hints of every kind for drawn scenes, the control copy that learns them, and their scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import default_collate

from annotator.ade20k import colorize
from annotator.openpose.people import KEYPOINT_NAMES
from cldm.model import create_model
from controlnet.conditions import find_condition
from controlnet.conditions.openpose import joints_of
from controlnet.evaluate import evaluation
from controlnet.evaluate.evaluation import Sampling, steered
from controlnet.evaluate.scores import MeanIoU
from controlnet.files import EXAMPLES
from controlnet.generation.loading import load_generator
from controlnet.generation.models import find_model
from controlnet.generation.request import Request, default_detect_resolution
from controlnet.storybook import hints
from controlnet.storybook.cases import draw_cases
from controlnet.storybook.dataset import HELD_OUT_SEED, draw_scene
from controlnet.storybook.draw_examples import draw_examples
from controlnet.storybook.hints import SHARES, HintedScenes, drawn_hint
from controlnet.storybook.scenes.labels import Label
from controlnet.training.data.dataset import Draw
from controlnet.training.run import train
from controlnet.training.settings import Settings
from ldm.util import instantiate_from_config
from ldm.weights import save_state_dict

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "models" / "tiny"


def condition(name):
    return find_condition(name)(device="cpu")


@pytest.mark.parametrize("name", SHARES)
def test_a_scene_has_a_hint_of_every_kind_that_the_condition_takes(name):
    scene, of = draw_scene(12, 128), condition(name)
    hint = drawn_hint(scene, of)
    assert of.check(hint).shape[:2] == (128, 128) and not of.is_empty(hint)
    window = (slice(0, 64), slice(32, 96))
    varied = [drawn_hint(scene, of, window, np.random.default_rng(5)) for _ in range(2)]
    assert varied[0].shape[:2] == (64, 64) and np.array_equal(*varied)


def test_depth_and_normals_are_those_of_the_canvas():
    scene = draw_scene(33, 128)
    depth = drawn_hint(scene, condition("depth"))
    assert np.abs(depth / 255 - scene.depth / scene.depth.max()).mean() < 0.02
    normal = drawn_hint(scene, condition("normal"))
    sky, ground = normal[2, 64], normal[-3, 64]
    assert sky.tolist() == [127, 127, 255]
    assert ground[1] > 160 and abs(int(ground[0]) - 127) < 5  # leans towards the viewer alone


def test_a_drawing_follows_the_outlines_of_the_map():
    scene = draw_scene(33, 128)
    lines = drawn_hint(scene, condition("scribble")) > 0
    edges = np.zeros_like(lines)
    edges[1:] |= scene.labels[1:] != scene.labels[:-1]
    assert (lines & edges).sum() > 0.9 * edges.sum() and lines.mean() < 0.3


def test_skeletons_have_the_joints_that_people_were_drawn_by():
    scene = draw_scene(12, 512)
    assert len(scene.people) == 1
    skeleton = drawn_hint(scene, condition("openpose"))
    found = joints_of(skeleton)
    assert {joint for joint, *_ in found} >= set(range(2, 14))
    limb_ends = {3, 4, 6, 7, 9, 10, 12, 13}  # what is nearer to others is not read so exactly from a drawing
    for joint, x, y, _ in (part for part in found if part[0] in limb_ends):
        assert np.hypot(*(scene.people[0, joint] * 512 - (x, y))) < 4, KEYPOINT_NAMES[joint]
    limbs = skeleton.max(axis=2) > 100
    person = cv2.dilate((scene.labels == Label.PERSON).astype(np.uint8), np.ones((7, 7)))
    assert person[limbs].mean() > 0.97  # eyes and ears lie on the head, and limbs within their sleeves
    nobody = next(s for s in map(draw_scene, range(40)) if not len(s.people))
    assert not drawn_hint(nobody, condition("openpose")).any()


def test_a_condition_that_scenes_know_nothing_of_is_refused():
    with pytest.raises(ValueError, match=r"no hints of scribble_interactive; known are seg, canny"):
        drawn_hint(draw_scene(0, 64), condition("scribble_interactive"))


def test_items_say_whose_hint_they_have_and_follow_from_their_draw():
    scenes = HintedScenes(5, 100, size=128, crop=64, whole=0.25)
    assert scenes.shapes == [128] * 25 + [64] * 75
    items = [scenes[Draw(3, position)] for position in range(60)]
    assert {item["condition"] for item in items} == set(SHARES)
    assert all(
        item["jpg"].shape == item["hint"].shape == item["map"].shape == (128, 128, 3) for item in items
    )
    scene = draw_scene(8, 128)
    maps = [item for item in items if item["condition"] == "seg"]
    assert 8 < len(maps) < 30
    assert all(np.array_equal(item["hint"], item["map"]) for item in maps)
    assert np.array_equal(items[0]["map"], colorize(scene.labels).astype(np.float32) / 255)
    again, window = scenes[Draw(3, 7)], scenes[Draw(30, 7)]
    assert all(np.array_equal(again[key], value) for key, value in items[7].items())
    assert window["hint"].shape == window["jpg"].shape == (64, 64, 3) and "noise_seed" in window


@pytest.mark.parametrize("name", ["depth", "normal"])
def test_training_knows_depth_as_a_network_sees_it(monkeypatch, name):
    scene, found = draw_scene(HELD_OUT_SEED, 128), condition(name)
    window = (slice(0, 64), slice(64, 128))
    seen = found.hint(scene.picture, 128, default_detect_resolution(found, 128))[window]
    monkeypatch.setattr(hints, "SEEN_DEPTH", 1.0)
    assert np.array_equal(drawn_hint(scene, found, window, np.random.default_rng(0)), seen)
    assert not np.array_equal(drawn_hint(scene, found, window), seen)  # measured by what is true


def test_the_examples_are_as_they_are_drawn(tmp_path):
    draw_examples(tmp_path)
    drawn = sorted(tmp_path.iterdir())
    assert len(drawn) == 13
    for path in drawn:
        shipped, again = (np.asarray(Image.open(place), float) for place in (EXAMPLES / path.name, path))
        assert np.abs(shipped - again).mean() < 0.5


@pytest.mark.parametrize("wrong", [{"taught": 1.5}, {"outputs_first": -0.1}])
def test_shares_of_a_lesson_are_between_0_and_1(wrong):
    definition = OmegaConf.load(TINY / "taught_tiny.yaml")
    definition.model.params.update(wrong)
    with pytest.raises(ValueError, match="shares between 0 and 1 are wanted"):
        instantiate_from_config(definition.model)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"crop": 320}, {"crop": 32}, {"whole": 1.5}])
def test_what_cannot_be_drawn_is_refused(wrong):
    with pytest.raises(ValueError, match="are wanted"):
        HintedScenes(**wrong)


class Oracle:
    """Knows the maps of some pictures."""

    def __init__(self, cases):
        self.known = {case.picture.tobytes(): case.labels for case in cases}

    def labels(self, picture):
        return self.known.get(picture.tobytes(), np.zeros(picture.shape[:2], np.uint8))


@pytest.mark.parametrize("name", ["seg", "canny", "scribble"])
def test_hints_of_a_condition_steer_and_the_map_judges(monkeypatch, name):
    cases = draw_cases(4, HELD_OUT_SEED, 64)
    expected = [condition(name).control(case.hint(condition(name))) for case in cases]
    seen = []

    def draw(model, asked, seeds, sampling, strength=1.0):
        seen.extend(case.steering for case in asked)
        return np.stack([case.picture for case in asked])

    monkeypatch.setattr(evaluation, "generate", draw)
    detector = Oracle(cases)
    of = find_condition(name)(detector if name == "seg" else None)
    report = steered(None, detector, cases, Sampling(), of, keep=2, progress=False)
    assert np.array_equal(seen, expected)
    assert report.scores["control_miou"] == 1 and set(report.generated) == {0, 1}
    assert report.scores["adherence"] == (None if name == "scribble" else 1)


def test_pictures_that_miss_their_edges_adhere_less(monkeypatch):
    cases = draw_cases(3, HELD_OUT_SEED, 64)
    monkeypatch.setattr(
        evaluation, "generate", lambda model, asked, *_: np.stack([c.picture // 8 for c in asked])
    )
    scores = steered(None, Oracle(cases), cases, Sampling(), condition("canny"), progress=False).scores
    assert scores["adherence"] < 0.3 and scores["control_miou"] < 0.5


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "scenes.yaml").write_text(
        "target: controlnet.storybook.hints.HintedScenes\n"
        "params: {count: 40, size: 128, crop: 64, shares: {seg: 1, canny: 1, depth: 1}}\n"
    )
    torch.manual_seed(0)
    model = create_model(TINY / "cldm_tiny.yaml")
    torch.nn.init.normal_(model.model.diffusion_model.out[2].weight, std=0.05)  # it starts at 0
    torch.save({"state_dict": model.state_dict()}, tmp_path / "base.ckpt")
    return Settings().from_yaml(ROOT / "configs" / "train" / "tiny_conditions.yaml"), {
        "model": str(TINY / "taught_tiny.yaml"), "base": str(tmp_path / "base.ckpt"),
        "data": str(tmp_path / "scenes.yaml"), "batch_size": 2, "precision": "32-true", "ema": 0.0,
        "warmup_steps": 1, "max_steps": 4, "save_every": 1, "progress": False,
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_a_taught_control_learns_alone_and_keeps_its_teacher_when_it_resumes(settings, tmp_path):
    base, changes = settings
    run = replace(base, **changes, output=str(tmp_path / "whole"))
    whole = train(run).lightning_module
    before = torch.load(tmp_path / "base.ckpt", weights_only=True)["state_dict"]
    changed = {name for name, value in whole.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("control_model.") for name in changed)
    assert set(whole.state_dict()) == set(before)  # the teacher is no part of what is exported
    taught = {f"control_model.{name}": value for name, value in whole.teacher.state_dict().items()}
    assert all(torch.equal(value, before[name]) for name, value in taught.items())

    half = replace(run, output=str(tmp_path / "half"))
    stopped = train(replace(half, max_steps=2))
    resumed = train(replace(half, resume=str(half.last_checkpoint))).lightning_module
    assert stopped.global_step == 2
    for name, value in resumed.reader.state_dict().items():
        torch.testing.assert_close(value, whole.reader.state_dict()[name], msg=name)
    taught = {f"control_model.{name}": value for name, value in resumed.teacher.state_dict().items()}
    assert all(torch.equal(value, before[name]) for name, value in taught.items())


def test_a_pupil_that_knows_as_much_as_its_teacher_has_nothing_to_learn():
    torch.manual_seed(0)
    model = create_model(TINY / "taught_tiny.yaml").eval()
    torch.nn.init.normal_(model.model.diffusion_model.out[2].weight)  # it starts at 0
    model.on_fit_start()
    model.taught, model.classes = 1.0, 0.0
    scenes = HintedScenes(5, 10, size=64, shares={"seg": 1.0}, crop=64)
    batch = default_collate([scenes[Draw(index, index)] for index in range(2)])
    with torch.no_grad():
        loss, log = model.shared_step(batch)
    assert float(loss) == float(log["val/lesson"]) == 0
    batch["hint"] = 1 - batch["hint"]
    torch.nn.init.normal_(model.control_model.middle_block_out[0].weight, std=0.5)
    assert model.shared_step(batch)[0] > 0


def test_another_control_may_teach(tmp_path):
    torch.manual_seed(0)
    model = create_model(TINY / "taught_tiny.yaml")
    known = {name: value.clone() for name, value in model.control_model.state_dict().items()}
    save_state_dict(model.state_dict(), tmp_path / "knows_maps.safetensors")
    torch.nn.init.normal_(model.control_model.middle_block_out[0].weight)
    model.teacher_weights = str(tmp_path / "knows_maps.safetensors")
    model.on_fit_start()
    assert all(torch.equal(value, known[name]) for name, value in model.teacher.state_dict().items())
    assert not torch.equal(model.control_model.middle_block_out[0].weight, known["middle_block_out.0.weight"])


def test_classes_are_read_off_what_the_control_copy_says():
    torch.manual_seed(0)
    model = create_model(TINY / "taught_tiny.yaml")
    for block in [*model.control_model.zero_convs, model.control_model.middle_block_out]:
        torch.nn.init.normal_(block[0].weight, std=0.1)  # they start at 0
    model.outputs_first, model.classes = 0.5, 10.0
    run = SimpleNamespace(max_steps=24, global_step=0)
    model.trainer = run
    scenes = HintedScenes(5, 10, size=64, shares={"canny": 1.0}, crop=64)
    batch = default_collate([scenes[Draw(index, index)] for index in range(2)])
    assert batch["labels"].shape == (2, 8, 8)
    learning = torch.optim.Adam(model.trained_parameters(), 3e-3)
    unet, model.model.diffusion_model = model.model.diffusion_model, None  # not computed in the first half
    heard = []
    for _ in range(12):
        loss, log = model.shared_step(batch)
        learning.zero_grad()
        loss.backward()
        learning.step()
        heard.append(float(log["train/classes"]))
        run.global_step += 1
    assert model.control_model.input_hint_block[0].weight.grad.any()
    assert heard[-1] < 0.5 * heard[0]
    model.model.diffusion_model = unet
    assert "train/lesson" not in log and "train/lesson" in model.shared_step(batch)[1]


@pytest.mark.parametrize("name", ["canny", "depth"])
def test_the_second_control_that_ships_follows_its_hints(name):
    """Against the first, which knows maps alone, by what a detector finds in pictures of three new scenes."""
    files = find_model("tiny")
    both, maps = (load_generator(f, "cpu", "fp32") for f in (files, replace(files, controls={})))
    agreement = []
    for generator in (both, maps):
        miou = MeanIoU()
        for seed in range(3):
            scene = draw_scene(HELD_OUT_SEED + 400_000 + seed, 256)
            hint = drawn_hint(scene, condition(name))
            request = Request(
                None, scene.prompt, hint=hint, condition=name, seed=seed, sampler="unipc", ddim_steps=6
            )
            (picture,) = generator.generate(request, measure=False).pictures
            miou.update(generator.detect(picture, 256), scene.labels)
        agreement.append(float(miou.compute()))
    assert agreement[0] > agreement[1] + 0.1, agreement
