"""The scores of an evaluation, and the whole way of the embedded model from drawn scenes to a scored
ControlNet.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tiny_training import resumed_exactly

from annotator.ade20k import CLASSES
from annotator.uniformer import UniformerDetector
from cldm.model import create_model, load_control, load_model
from controlnet.commands import evaluate as tool_evaluate
from controlnet.commands.measuring import find_cases, how
from controlnet.evaluate import evaluation as evaluation
from controlnet.evaluate import per_class
from controlnet.evaluate.evaluation import (
    Case,
    Sampling,
    batches_of,
    evaluate,
    generate,
    prompt_scores,
    read_cases,
)
from controlnet.evaluate.scores import MeanIoU
from controlnet.generation.several import MODES
from controlnet.storybook import train_detector as train_detector_module
from controlnet.storybook.cases import colour_cases, draw_cases, with_judge
from controlnet.storybook.dataset import HELD_OUT_SEED, StorybookDataset, draw_scene, write_dataset
from controlnet.storybook.export import export
from controlnet.storybook.hints import SHARES
from controlnet.storybook.make_tiny import make_tiny
from controlnet.storybook.normalize_latents import latent_statistics, normalize
from controlnet.storybook.scene_items import BEFORE_THE_SKY, degrade, flatten
from controlnet.storybook.scenes.labels import Label
from controlnet.storybook.train_detector import DetectorScenes, choose_points, train_detector
from ldm.weights import read_state_dict

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "models" / "tiny"
SHIPPED_DETECTOR = ROOT / "annotator" / "ckpts" / "upernet_tiny.safetensors"


def test_mean_iou_is_that_of_the_classes_that_occur():
    true = np.array([[2, 2, 2, 4], [4, 4, 4, 4]], np.uint8)
    found = np.array([[2, 2, 9, 4], [4, 4, 2, 4]], np.uint8)
    score = MeanIoU()
    score.update(found, true)
    sky, tree = 2 / 4, 4 / 5
    assert float(score.compute()) == pytest.approx(
        (sky + tree) / 2
    )  # 9 occurs nowhere, and is no third share
    assert score.per_class() == pytest.approx({2: sky, 4: tree})
    score.update(true, true)
    assert float(score.compute()) == pytest.approx((5 / 7 + 9 / 10) / 2)  # over all pixels, not over pictures


class Oracle:
    """A detector that knows the maps of some pictures, and says sky of any other."""

    def __init__(self, cases):
        self.known = {case.picture.tobytes(): case.labels for case in cases}

    def labels(self, picture):
        return self.known.get(picture.tobytes(), np.full(picture.shape[:2], int(Label.SKY), np.uint8))

    def labels_of(self, pictures):
        return [self.labels(picture) for picture in pictures]


@pytest.fixture(scope="module")
def tiny_model():
    torch.manual_seed(0)
    return create_model(TINY / "cldm_tiny.yaml").eval()


def test_a_perfect_model_gets_perfect_scores(monkeypatch, tiny_model):
    cases = draw_cases(12, HELD_OUT_SEED, 64)

    def draw_what_was_asked_for(model, asked, seeds, sampling, strength=1.0):
        return np.stack([case.picture if strength else np.zeros_like(case.picture) for case in asked])

    monkeypatch.setattr(evaluation, "generate", draw_what_was_asked_for)
    sampling, half_blind = Sampling(batch_size=5), Oracle(cases[:6])
    scores = evaluate(tiny_model, Oracle(cases), cases, sampling, progress=False, second=half_blind).scores
    assert scores["detector_miou"] == scores["control_miou"] == scores["control_ratio"] == 1
    assert scores["prompt_accuracy"] > 0.9  # the judge is not perfect at this size
    assert scores["uncontrolled_miou"] < 0.1  # sky alone
    assert scores["vae_psnr"] < scores["vae_edge_psnr"] < 30  # of random weights, which draw no edges at all
    assert scores["second_detector_miou"] == scores["second_control_miou"] < 0.8
    assert scores["second_control_ratio"] == 1  # it sees as much in what was made as in what was there
    assert 0.5 < scores["verdict_agreement"] < 0.9
    assert set(scores["control_iou"]) <= set(CLASSES)


def test_a_model_that_ignores_its_prompt_is_found_out(monkeypatch, tiny_model):
    cases = draw_cases(30, HELD_OUT_SEED, 64)
    grey = prompt_scores([case.agreement(np.full_like(case.picture, 128)) for case in cases])
    assert grey["prompt_accuracy"] < 0.4
    unasked = with_judge(Case(cases[0].picture, cases[0].labels, "")).agreement(cases[0].picture)
    assert unasked == {} and prompt_scores([unasked])["prompt_accuracy"] is None


def test_one_wrong_aspect_is_a_wrong_picture():
    answers = [
        {"time": True, "house": False},
        {"time": True},
        {},
        {"time": False, "house": True},
        {"season": True},
    ]
    assert prompt_scores(answers) == {
        "prompt_accuracy": 0.5,
        "prompt_accuracy_of": {"house": 0.5, "season": 1.0, "time": 0.6667},
    }


def test_cases_of_a_folder_are_those_that_were_drawn(tmp_path):
    write_dataset(tmp_path, 3, seed=5, size=64)
    for read, drawn in zip(read_cases(tmp_path, None, 64), draw_cases(3, 5, 64), strict=True):
        assert np.array_equal(read.picture, drawn.picture)
        assert np.array_equal(read.labels, drawn.labels)
        assert read.prompt == drawn.prompt
        assert read.judge is None and read.agreement(read.picture) == {}
    with pytest.raises(ValueError, match="are no maps"):
        read_cases(tmp_path, None, 64, "picture")


def test_a_folder_needs_no_drawn_world(tmp_path, monkeypatch):
    write_dataset(tmp_path, 2, seed=5, size=64)
    for name in ("controlnet.storybook", "controlnet.storybook.cases", "controlnet.storybook.dataset"):
        monkeypatch.setitem(sys.modules, name, None)  # to import it is an error from here on
    options = argparse.Namespace(
        folder=tmp_path, count=1, hint_kind="color-map", model="sd15", detector_only=False, seed=None
    )
    cases, source = find_cases(options, 64)
    assert source == {"folder": str(tmp_path)} and [case.judge for case in cases] == [None]
    with pytest.raises(ImportError):
        find_cases(argparse.Namespace(**vars(options) | {"folder": None}), 64)


def test_a_report_says_how_its_pictures_were_made():
    usual = {"sampler": "ddim", "steps": 20, "scale": 4.0}
    assert how(Sampling()) == usual
    more = {"guidance_interval": [0.2, 0.8], "control_mode": "closer"}
    assert how(Sampling(guidance_interval=(0.2, 0.8), control_mode="closer")) == usual | more


def test_judges_are_the_callers(monkeypatch, tiny_model):
    picture, labels = np.full((64, 64, 3), 200, np.uint8), np.zeros((64, 64), np.uint8)
    judges = (lambda picture: {"bright": bool(picture.mean() > 100)}, None)
    bright = [Case(picture, labels, "", judge) for judge in judges]
    monkeypatch.setattr(
        evaluation, "generate", lambda model, cases, *_: np.stack([picture // 4] * len(cases))
    )
    scores = evaluate(tiny_model, Oracle(bright), bright, Sampling(), progress=False).scores
    assert scores["prompt_accuracy"] == 0 and scores["prompt_accuracy_of"] == {"bright": 0}


def test_wishes_in_several_ways_of_words(monkeypatch):
    ways = colour_cases(3, 1_000_300_000, 128)
    sentence, classes, against = (ways[way] for way in ways)
    for a, b, c in zip(sentence, classes, against, strict=True):
        assert not a.class_prompts and b.class_prompts == c.class_prompts
        wanted = [text.split()[1] for text in b.class_prompts.values()]
        assert len(set(wanted)) == len(wanted) >= 2
        assert all(text in a.prompt for text in b.class_prompts.values())
        assert not any(text in prompt for text in b.class_prompts.values() for prompt in (b.prompt, c.prompt))
        assert a.judge.keywords["prompt"] == c.judge.keywords["prompt"] == a.prompt

    def drawn(model, cases, sampling):
        """A model that believes the sentence alone."""
        return ((k, np.full_like(c.picture, 0 if c.class_prompts else 255)) for k, c in enumerate(cases))

    monkeypatch.setattr(per_class, "generate_all", drawn)
    answers = {name: [{"house": True, "time": False}, {"house": True, "boat": False}] for name in ways}
    told = iter([answer for name in ways for answer in [*answers[name], {}]])
    monkeypatch.setattr(Case, "agreement", lambda self, picture: next(told))
    report = per_class.compare_ways(None, ways, Sampling(), keep=1)
    assert report.scores["ways"]["for each class"] == {
        "things": pytest.approx(2 / 3), "boat": 0.0, "house": 1.0, "time": 0.0,
    }  # fmt: skip
    assert report.generated[0].shape == (128, 3 * 128, 3)


def test_batches_hold_one_size_and_keep_the_order():
    sizes = [64, 64, 64, 128, 64, 64]
    cases = [Case(np.zeros((s, s, 3), np.uint8), np.zeros((s, s), np.uint8), "") for s in sizes]
    assert list(batches_of(cases, 2)) == [[0, 1], [2], [3], [4, 5]]


def test_the_mode_of_a_control_reaches_the_pictures(tiny_model):
    """Where the convolutions that begin with zeros have learned something."""
    model, cases = copy.deepcopy(tiny_model), draw_cases(1, HELD_OUT_SEED, 64)
    for weight in model.parameters():
        if weight.ndim == 4 and not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    pictures = {
        mode: generate(model, cases, [7], Sampling(steps=2, control_mode=mode)).tobytes() for mode in MODES
    }
    assert len(set(pictures.values())) == len(MODES)


def test_a_picture_does_not_depend_on_its_batch(tiny_model):
    cases, sampling = draw_cases(2, HELD_OUT_SEED, 64), Sampling(steps=2)
    together = generate(tiny_model, cases, [7, 8], sampling)
    alone = generate(tiny_model, cases[1:], [8], sampling)
    assert together.shape == (2, 64, 64, 3)
    assert np.abs(together[1].astype(int) - alone[0]).max() <= 1
    assert np.abs(together[0].astype(int) - together[1]).mean() > 1


def test_normalized_latents_have_variance_one_and_decode_as_before():
    torch.manual_seed(0)
    model = create_model(TINY / "autoencoder_tiny.yaml").eval()
    scenes = StorybookDataset(count=6, size=64)
    picture = torch.from_numpy(scenes[0]["jpg"]).permute(2, 0, 1)[None]
    with torch.no_grad():
        posterior = model.encode(picture)
        noise = torch.randn_like(posterior.mean)
        before = model.decode(posterior.mode()), model.decode(posterior.mean + posterior.std * noise)
        normalize(model, *latent_statistics(model, scenes))
        posterior = model.encode(picture)
        after = model.decode(posterior.mode()), model.decode(posterior.mean + posterior.std * noise)
    mean, std = latent_statistics(model, scenes)
    assert torch.allclose(mean, torch.zeros(4), atol=1e-4)
    assert torch.allclose(std, torch.ones(4), atol=1e-4)
    for old, new in zip(before, after, strict=True):
        assert torch.allclose(old, new, atol=1e-3)


def test_degraded_pictures_stay_like_what_was_drawn():
    scene = draw_scene(3, 64)
    rng = np.random.default_rng(0)
    distances = [np.abs(degrade(scene.picture, rng).astype(int) - scene.picture).mean() for _ in range(30)]
    assert max(distances) < 40
    assert min(distances) < 1 < max(distances)


def test_flattened_pictures_have_few_colours_where_a_class_is():
    scene = draw_scene(1, 128)
    drawn = [flatten(scene.picture, scene.labels, np.random.default_rng(seed)) for seed in range(12)]
    counts = [
        [len(np.unique(flat[labels == label], axis=0)) for label in np.unique(labels)]
        for flat, labels in drawn
    ]
    assert all(1 <= count <= 4 for row in counts for count in row)  # three colours and the outline
    assert {max(row) for row in counts} == {3, 4}, "outlines come and go"
    assert np.median([np.abs(flat.astype(int) - scene.picture).mean() for flat, _ in drawn]) < 40
    left_out = [labels != scene.labels for _, labels in drawn]
    assert all(
        (labels[places] == Label.SKY).all() for (_, labels), places in zip(drawn, left_out, strict=True)
    )
    assert {places.any() for places in left_out} == {True, False}
    plain = [len(np.unique(flat[places], axis=0)) for (flat, _), places in zip(drawn, left_out, strict=True)]
    assert max(plain) <= 3  # sky of one or two colours, for one or two things, and their outline
    assert set(np.unique(scene.labels[np.any(left_out, axis=0)])) <= set(BEFORE_THE_SKY)


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.3, 5, 20), (1.0, 40, 40)])
def test_a_share_of_pictures_is_flat(monkeypatch, share, least, most):
    monkeypatch.setattr(train_detector_module, "degrade", lambda picture, rng: picture)
    scenes = DetectorScenes(0, 40, 64, points=5, flat=share)
    colours = [len(np.unique(scenes[index]["picture"].reshape(3, -1), axis=1).T) for index in range(40)]
    assert least <= sum(count < 50 for count in colours) <= most
    with pytest.raises(ValueError, match="a share between 0 and 1 is wanted"):
        DetectorScenes(0, 4, 64, points=5, flat=25)


def test_points_look_at_every_class():
    labels = np.zeros((64, 64), np.uint8)
    labels[10:12, 10:13] = 12  # 6 of 4096 pixels
    points = choose_points(labels, 2000, np.random.default_rng(0))
    assert points.shape == (2000,)
    assert 0 <= points.min() <= points.max() < 4096
    assert 0.04 < (labels.ravel()[points] == 12).mean() < 0.09  # half of an eighth, and 40 times their share


def test_detector_points_belong_to_the_picture():
    item = DetectorScenes(0, 4, 64, points=500)[1]
    scene = draw_scene(1, 64)
    assert any(
        np.array_equal(item["classes"], maps.ravel()[item["points"]])
        for maps in (scene.labels, scene.labels[:, ::-1])
    )


@pytest.fixture(scope="module")
def detector_settings():
    settings = OmegaConf.load(ROOT / "configs" / "train" / "tiny_detector.yaml")
    return OmegaConf.merge(
        settings,
        {
            "network": str(ROOT / settings.network),
            "size": 64,
            "scenes": 64,
            "batch_size": 4,
            "max_steps": 6,
            "validate_every": 3,
            "validation_scenes": 2,
            "save_every": 3,
        },
    )


@pytest.mark.filterwarnings("ignore")
def test_detector_training_resumes_exactly_and_its_weights_load(detector_settings, tmp_path):
    whole = resumed_exactly(train_detector, OmegaConf.merge(detector_settings, {"save_every": 1}), tmp_path)
    assert whole.stat().st_size < 8e6
    detector = UniformerDetector(whole, detector_settings.network, device="cpu")
    assert detector.labels(draw_scene(0, 64).picture).shape == (64, 64)
    assert "detector_miou" in (tmp_path / "whole" / "metrics.csv").read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Every step of controlnet/storybook/README.md at toy length: the folder with ``steps``, ``models`` and
    ``detectors``.
    """
    folder = tmp_path_factory.mktemp("tiny")
    for name in ("models", "detectors"):
        (folder / name).mkdir()
    _make(folder)
    return folder


def _make(folder: Path) -> None:
    toy = {
        "precision": "32-true",
        "workers": 0,
        "batch_size": 2,
        "logger_freq": 0,
        "progress": False,
        "layouts": 2,
    }
    make_tiny(
        folder / "steps", folder / "models", folder / "detectors", length=1e-6, **toy, validation_scenes=2
    )


def test_the_steps_lead_to_weights_in_parts_that_load(made):
    files = sorted((made / "models").iterdir())
    assert len(files) == 6  # four parts, their index, and the control for other hints
    assert all(path.stat().st_size < 15e6 for path in files)
    shipped = [*files, made / "detectors" / "upernet_tiny.safetensors"]
    assert sum(path.stat().st_size for path in shipped) < 52e6
    model = load_model(TINY / "cldm_tiny.yaml", made / "models" / "control_tiny_seg.safetensors.index.json")
    before = read_state_dict(made / "steps" / "tiny_colours" / "checkpoints" / "last.ckpt")
    decoder = read_state_dict(made / "steps" / "tiny_decoder" / "checkpoints" / "last.ckpt")
    before |= {f"first_stage_model.{name}": tensor for name, tensor in decoder.items()}
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, before[name], atol=1e-3, rtol=1e-3), name
    assert model.alphas_cumprod.dtype == torch.float32


def test_the_control_for_other_hints_is_half_as_large_and_as_good(made, caplog):
    file = made / "models" / "control_tiny_hints.safetensors"
    control = load_control(TINY / "cldm_tiny.yaml", file)
    assert "8 bits" not in caplog.text
    before = read_state_dict(made / "steps" / "tiny_conditions" / "checkpoints" / "last.ckpt")
    count = sum(parameter.numel() for parameter in control.parameters())
    assert file.stat().st_size < 1.2 * count  # bytes
    for name, parameter in control.named_parameters():
        exact = before[f"control_model.{name}"]
        ends = name.startswith(("input_hint_block", "zero_convs", "middle_block_out"))
        rounding = 1e-3 if ends or exact.ndim == 1 else 2**-4
        assert torch.allclose(parameter, exact, atol=2e-3, rtol=rounding), name
    assert not torch.equal(
        control.middle_block[0].in_layers[2].weight, before["control_model.middle_block.0.in_layers.2.weight"]
    )


def test_a_decoder_of_other_latents_is_not_exported(made, tmp_path):
    source = made / "steps" / "tiny_colours" / "checkpoints" / "last.ckpt"
    other = made / "steps" / "tiny_vae" / "checkpoints" / "last.ckpt"  # before its latents were normalized
    with pytest.raises(ValueError, match=r"quant_conv.* differs"):
        export(source, tmp_path / "model.safetensors", vae=other)
    assert not list(tmp_path.iterdir())


def test_what_is_made_is_not_made_again(made):
    weights = made / "models" / "control_tiny_seg-00001-of-00004.safetensors"
    checkpoints = [*(made / "steps").rglob("last.ckpt"), made / "steps" / "tiny_ini.safetensors"]
    assert len(checkpoints) == 12
    before = weights.read_bytes(), [path.stat().st_mtime_ns for path in checkpoints]
    _make(made)
    assert (weights.read_bytes(), [path.stat().st_mtime_ns for path in checkpoints]) == before


def test_the_tool_measures_and_shows_any_model(made, tmp_path, capsys):
    definition = OmegaConf.load(TINY / "cldm_tiny.yaml")
    definition.model.params.image_size = 8  # scenes of 64 x 64
    OmegaConf.save(definition, tmp_path / "small.yaml")
    arguments = [
        *("--model", str(tmp_path / "small.yaml")),
        *("--weights", str(made / "models" / "control_tiny_seg.safetensors.index.json")),
        *("--detector-weights", str(made / "detectors" / "upernet_tiny.safetensors")),
        *("--detector-config", str(ROOT / "configs" / "annotator" / "upernet_tiny.py")),
        *("--second-detector", str(ROOT / "configs" / "annotator" / "unet_tiny.py")),
        *("--count", "2", "--steps", "2", "--json", str(tmp_path / "new" / "s.json")),
        *("--grid", str(tmp_path / "new" / "g.png")),
    ]
    assert tool_evaluate.main(arguments) == 0
    scores = json.loads((tmp_path / "new" / "s.json").read_text())
    keys = (
        "detector_miou",
        "control_miou",
        "control_ratio",
        "uncontrolled_miou",
        "vae_psnr",
        "vae_edge_psnr",
        "second_detector_miou",
        "second_control_ratio",
        "seconds_per_image",
    )
    assert all(isinstance(scores[key], float) for key in keys)
    assert scores["seed"] == HELD_OUT_SEED
    assert "control_miou" in capsys.readouterr().out
    assert (tmp_path / "new" / "g.png").stat().st_size > 1000
    more = ["--condition", "all", "--count", "1", "--control-mode", "closer"]
    assert tool_evaluate.main([*arguments, *more]) == 0
    scores = json.loads((tmp_path / "new" / "s.json").read_text())
    table = scores["conditions"]
    assert scores["control_mode"] == "closer"
    assert list(table) == list(SHARES) and table["seg"]["of_seg"] == 1
    assert all(0 <= row["control_miou"] <= 1 for row in table.values())
    printed = capsys.readouterr().out
    assert re.search(r"^condition +control_miou +of_seg +prompt_accuracy +adherence$", printed, re.M)
    assert re.search(r"^canny +0\.\d{4} +\d\.\d{4} +\S+ +[01]\.\d{4}$", printed, re.M)
    detector = arguments[arguments.index("--detector-weights") + 1]
    assert tool_evaluate.main(["--detector-only", "--detector-weights", detector, "--count", "2"]) == 0
    assert "detector_miou" in capsys.readouterr().out
    assert tool_evaluate.main(["--model", "nonsense"]) == 1
    assert "Known names" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):  # before it measures for minutes
        tool_evaluate.main(["--grid", str(tmp_path / "grid.txt")])
    with pytest.raises(SystemExit, match="2"):
        tool_evaluate.main(["--condition", "edges"])
    assert "--condition must be all or one of canny" in capsys.readouterr().err
    assert tool_evaluate.main(["--json", str(tmp_path)]) == 1
    assert "is a folder" in capsys.readouterr().err


def test_the_shipped_files_are_those_of_the_readme():
    """No weights without their sums, and no sums without weights."""
    row = r"`([\w./-]+\.(?:safetensors|json))` \| [\d,]+ \| `([0-9a-f]{64})`"
    listed = dict(re.findall(row, (TINY / "README.md").read_text()))
    files = [*TINY.glob("*.safetensors*"), *SHIPPED_DETECTOR.parent.glob("u*net_tiny.*")]
    assert set(listed) == {str(path.relative_to(ROOT)) for path in files}
    for name, digest in listed.items():
        assert hashlib.sha256((ROOT / name).read_bytes()).hexdigest() == digest, name
    shipped = {*files, *SHIPPED_DETECTOR.parent.glob("*.safetensors")}
    assert sum(path.stat().st_size for path in shipped) < 60e6


def test_the_shipped_detector_reads_scenes_it_never_saw():
    detector = UniformerDetector(
        SHIPPED_DETECTOR, ROOT / "configs" / "annotator" / "upernet_tiny.py", device="cpu"
    )
    cases = draw_cases(40, HELD_OUT_SEED + 5000, 256)
    rng = np.random.default_rng(0)
    painted = [flatten(case.picture, case.labels, rng) for case in cases]
    painted = [
        replace(case, picture=flat, labels=labels)
        for case, (flat, labels) in zip(cases, painted, strict=True)
    ]
    assert evaluation.detector_score(detector, cases)["detector_miou"] > 0.8
    assert evaluation.detector_score(detector, painted)["detector_miou"] > 0.7


@pytest.fixture(scope="module")
def shipped_scores():
    from controlnet.generation.loading import load_generator
    from controlnet.generation.models import find_model

    loaded = load_generator(find_model("tiny"), "cpu")
    cases = draw_cases(8, HELD_OUT_SEED + 6000, 256)
    return evaluate(
        loaded.model, loaded.condition("seg").detector, cases, Sampling(scale=loaded.guidance), progress=False
    ).scores


def test_the_shipped_model_follows_map_and_prompt(shipped_scores):
    assert shipped_scores["control_ratio"] > 0.75
    assert shipped_scores["uncontrolled_miou"] < 0.35 * shipped_scores["control_miou"]
    told = shipped_scores["prompt_accuracy_of"]
    assert told["time"] > 0.7 and told["season"] > 0.7
    assert shipped_scores["vae_psnr"] > 28


def test_the_shipped_model_follows_all_of_the_prompt(shipped_scores):
    assert shipped_scores["prompt_accuracy"] > 0.6
