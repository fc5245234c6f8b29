"""Several controls of one request: by the generator, in a saved picture, in lines, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from front.small_page import ColorDetector, draw
from golden_data import fill_by_recipe, load_golden, tiny_config

from controlnet.commands import generate
from controlnet.generation.controls import Controls
from controlnet.generation.generator import Generator
from controlnet.generation.jobs import jobs_of_lines, jobs_of_pictures
from controlnet.generation.png import read_request, save_png
from controlnet.generation.request import Request, RequestError
from controlnet.generation.several import MODES, FurtherControl
from controlnet.generation.several_files import further_of_text
from ldm.util import instantiate_from_config

EDGES = np.zeros((64, 64), np.uint8)
EDGES[20, 10:50] = 255
LEFT = np.tile(np.uint8([255, 0]), (2, 1))


def ask(*further: FurtherControl, **changes) -> Request:
    settings = {"image_resolution": 64, "detect_resolution": 64, "ddim_steps": 4, "seed": 7, **changes}
    return Request(draw(), "a house", further=further, **settings)


def picture(generator: Generator, *further: FurtherControl, **changes) -> np.ndarray:
    return generator.generate(ask(*further, **changes)).pictures[0]


@pytest.fixture
def with_files(small_model, tmp_path) -> Generator:
    """The small model with a control of another file for canny edges."""
    _, case = load_golden("sampling")
    loads = []

    def load(path):
        loads.append(path.name)
        return fill_by_recipe(instantiate_from_config(tiny_config(case)).control_model, salt=5).eval()

    files = {"canny": tmp_path / "canny", "hed": tmp_path / "both", "scribble": tmp_path / "both"}
    controls = Controls(files, load, ("seg",), keep=1)
    generator = Generator(small_model, {"seg": ColorDetector()}, "small", 64, controls=controls)
    generator.loads = loads
    return generator


def test_what_changes_nothing_changes_no_bit(generator):
    plain = picture(generator)
    same = (
        {"control_start": 0.0, "control_end": 1.0, "control_mode": "balanced"},
        {"region": np.full((40, 40), 255, np.uint8)},
    )
    for changes in same:
        np.testing.assert_array_equal(picture(generator, **changes), plain)
    np.testing.assert_array_equal(picture(generator, FurtherControl("canny", strength=0.0)), plain)
    two = picture(generator, FurtherControl("seg"), strength=0.0)
    np.testing.assert_array_equal(two, plain)


def test_guess_mode_is_the_mode_control_for_all(generator):
    canny = FurtherControl("canny")
    guessed = picture(generator, canny, guess_mode=True)
    mode = dataclasses.replace(canny, mode="control")
    np.testing.assert_array_equal(picture(generator, mode, control_mode="control"), guessed)
    np.testing.assert_array_equal(
        picture(generator, guess_mode=True), picture(generator, control_mode="control")
    )
    different = {picture(generator, control_mode=mode).tobytes() for mode in MODES}
    assert len(different) == len(MODES)


def test_each_setting_of_a_further_control_reaches_the_picture(generator):
    seen = [picture(generator), picture(generator, FurtherControl("canny"))]
    upside_down, faint = np.ascontiguousarray(draw()[::-1]), draw() // 4 + 90
    seen += [
        picture(generator, FurtherControl("canny", **changes))
        for changes in (
            {"strength": 0.5}, {"start": 0.5}, {"end": 0.5}, {"mode": "prompt"}, {"mode": "closer"},
            {"region": LEFT}, {"input_image": upside_down}, {"hint": np.eye(64, dtype=np.uint8) * 255},
            {"hint": EDGES}, {"input_image": faint, "options": {"low_threshold": 1, "high_threshold": 1}},
        )
    ]  # fmt: skip
    windows = ({"control_start": 0.5}, {"control_end": 0.5}, {"region": LEFT})
    seen += [picture(generator, **changes) for changes in windows]
    same = [(a, b) for a in range(len(seen)) for b in range(a) if np.array_equal(seen[a], seen[b])]
    assert not same


def test_a_picture_of_its_own_is_detected_at_its_own_size(generator):
    result = generator.generate(ask(FurtherControl("seg", input_image=draw(128, 128))))
    assert result.request.further[0].hint.shape == (64, 64)
    np.testing.assert_array_equal(result.request.further[0].hint, result.hint)
    assert [each.shape for each in result.all_shown] == [(64, 64, 3)] * 2


def test_networks_of_one_run_are_loaded_once_and_stay_together(with_files):
    further = [FurtherControl(name) for name in ("canny", "scribble", "hed")]
    with_files.detectors = {**with_files.detectors, "hed": lambda image: image[..., 0]}
    first = picture(with_files, *further[:2])
    assert with_files.loads == ["canny", "both"]
    np.testing.assert_array_equal(picture(with_files, *further[:2]), first)
    picture(with_files, *further)
    assert with_files.loads == ["canny", "both"], "two conditions of one file"
    picture(with_files, further[0])
    picture(with_files, further[1])
    assert with_files.loads == ["canny", "both", "both"], "what a run does without goes"
    assert picture(with_files, FurtherControl("canny", strength=0.0)).any()
    assert len(with_files.loads) == 3, "strength 0 loads nothing"


def test_several_work_with_less_memory_and_seeds_of_their_own(generator):
    further = FurtherControl("canny", end=0.5)
    both = generator.generate(ask(further, num_samples=2, per_sample_seeds=True)).pictures
    generator.save_memory = True
    alone = picture(generator, further, seed=8)
    assert np.abs(both[1].astype(int) - alone).max() <= 1


def test_a_saved_picture_is_made_again_from_itself(generator, tmp_path):
    request = ask(
        FurtherControl("canny", strength=0.7, end=0.6, mode="prompt", region=LEFT),
        FurtherControl("seg", input_image=draw(128, 128), start=0.25),
        region=np.full((32, 32), 200, np.uint8), control_mode="control", control_end=0.75,
    )  # fmt: skip
    result = generator.generate(request)
    save_png(tmp_path / "a.png", result.pictures[0], result.metadata(0))
    again = read_request(tmp_path / "a.png")
    assert [each.settings() for each in again.further] == [each.settings() for each in request.further]
    np.testing.assert_array_equal(generator.generate(again).pictures[0], result.pictures[0])


# What is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"further": 3}, "further must be a list"),
        ({"further": [FurtherControl("seg")] * 4}, "4 further controls; at most 3"),
        ({"further": [FurtherControl("sag")]}, r"Further control 1 \(sag\): There is no condition 'sag'"),
        ({"further": [FurtherControl(None)]}, "Further control 1: condition must be text, got None"),
        ({"further": [FurtherControl("seg", strength=3)]}, "strength must be from 0 to 2, got 3"),
        ({"further": [FurtherControl("seg", start=float("nan"))]}, "start must be from 0 to 1, got nan"),
        ({"further": [FurtherControl("seg", end="1")]}, "end must be a number, got '1'"),
        ({"further": [FurtherControl("seg", start=0.5, end=0.5)]}, "start 0.5 is not below end 0.5"),
        ({"further": [FurtherControl("seg", mode="both")]}, "mode must be one of balanced, prompt, control"),
        ({"further": [FurtherControl("seg", mode=[])]}, "mode must be one of"),
        ({"further": [FurtherControl("seg", options={"a": 1})]}, "seg has no option 'a'"),
        ({"further": [FurtherControl("seg", options=3)]}, "options must be an object of numbers, got 3"),
        ({"further": [FurtherControl("seg", hint=draw())]}, "A hint of seg must be uint8"),
        ({"further": [FurtherControl("canny", region=draw())]}, "region must be a uint8 array"),
        ({"further": [FurtherControl("seg", mode="prompt")], "guess_mode": True}, "is mode control for all"),
        ({"further": [FurtherControl("seg", mode="closer")], "guess_mode": True}, "its mode is closer"),
        ({"control_mode": "prompt", "guess_mode": True}, "guess_mode is control_mode control"),
        ({"control_mode": "closer", "guess_mode": True}, "the request says closer"),
        ({"control_start": 0.6, "control_end": 0.4}, "control_start 0.6 is not below control_end 0.4"),
        ({"control_start": -1}, "control_start must be from 0 to 1, got -1"),
        ({"region": np.zeros((8, 8), np.uint8)}, "region is black throughout"),
        ({"region": np.zeros((0, 8), np.uint8)}, "region is empty"),
        ({"region": "left"}, "region must be a uint8 array"),
    ],
)  # fmt: skip
def test_impossible_requests(changes, message):
    with pytest.raises(RequestError, match=message) as caught:
        Request(draw(), "x", **changes)
    assert "\n" not in str(caught.value)


def test_a_request_without_a_picture_has_none_for_its_further_controls(house_map):
    with pytest.raises(RequestError, match="the request has no picture to find one in"):
        Request(None, "x", hint=house_map, further=[FurtherControl("canny")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"control_start": 0.3, "control_end": 0.45}, "The control would never act: none of 4 steps"),
        ({"further": [FurtherControl("canny", end=0.2)]}, "Further control 1 would never act"),
        ({"region": np.full((20, 60), 255, np.uint8)}, "The region is 60x20 pixels, and the result 64x64"),
        ({"further": [FurtherControl("seg", hint=EDGES[:, :9] % 9)]}, "The hint of further"),
        ({"further": [FurtherControl("seg", input_image=draw(50, 150))]}, "The picture of further"),
        (
            {"further": [FurtherControl("seg", region=np.full((20, 60), 9, np.uint8))]},
            "The region of further control 1 is 60x20",
        ),
    ],
)  # fmt: skip
def test_what_only_the_run_shows_is_told_before_it_begins(generator, changes, message):
    further = changes.pop("further", [])
    with pytest.raises(RequestError, match=message):
        generator.generate(ask(*further, **changes), on_step=lambda step: pytest.fail("it began"))


def test_a_further_condition_that_the_model_has_no_control_for(with_files):
    with_files.controls.serves_all = False
    with pytest.raises(RequestError, match="no control for depth"):
        picture(with_files, FurtherControl("depth", hint=np.zeros((64, 64), np.uint8)))


# Lines and command lines ------------------------------------------------------------------------------------


def lines(folder, *rows):
    for name, array in {"a.png": draw(), "hint.png": EDGES, "left.png": LEFT * 255}.items():
        save_png(folder / name, array)
    path = folder / "requests.jsonl"
    path.write_text("\n".join(json.dumps({"image": "a.png", "prompt": "x", **row}) for row in rows))
    return path


def test_lines_with_further_controls(tmp_path):
    path = lines(
        tmp_path,
        {
            "region": "left.png", "control_end": 0.5,
            "further": [
                {"condition": "canny", "hint": "hint.png", "low_threshold": 30, "region": "left.png"},
                {"condition": "scribble", "image": "a.png", "options": {}, "mode": "prompt"},
                {"condition": "canny", "start": 0.2, "end": 0.9},
            ],
        },
        {},
    )  # fmt: skip
    job, other = jobs_of_lines(path, {})
    request, warnings = job.request()
    assert not warnings and request.control_end == 0.5
    first, second, third = request.further
    np.testing.assert_array_equal(request.region, LEFT * 255)
    np.testing.assert_array_equal(first.hint, EDGES)
    assert (first.options["low_threshold"], second.mode, third.start) == (30, "prompt", 0.2)
    assert second.input_image.shape == draw().shape and third.hint is None
    assert job.files() == [*(f"00001_map{k}.png" for k in ("", 2, 3, 4)), "00001.png"]
    assert other.files() == ["00002_map.png", "00002.png"]
    asked = job.asked()
    assert str(tmp_path) not in json.dumps(asked)
    save_png(tmp_path / "hint.png", EDGES[::-1])
    assert job.asked() != asked, "another hint is another job"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"further": {}}, "further must be a list of objects"),
        ({"further": "canny"}, "further must be a list of objects"),
        ({"further": ["canny"]}, "further must be a list of objects"),
        ({"further": [{}] * 2}, "Further control 1: it says no condition"),
        ({"further": [{"condition": "canny"}] * 9}, "9 further controls; at most 3"),
        ({"further": [{"condition": ["canny"]}]}, "There is no condition"),
        ({"further": [{"condition": "canny", "strenght": 1}]}, "unknown keys 'strenght'"),
        ({"further": [{"condition": "canny", "hint": 3}]}, "hint must be the path of a file, got 3"),
        ({"further": [{"condition": "canny", "image": "a\0b"}]}, "image must be the path of a file"),
        ({"further": [{"condition": "canny", "region": {}}]}, "region must be the path of a file"),
        ({"further": [{"condition": "canny", "options": 3}]}, "options must be an object"),
        ({"further": [{"condition": "canny", "strength": {}}]}, "strength must be a number"),
        ({"further": [{"condition": "canny", "strength": 10**400}]}, "digits"),
        ({"further": [{"condition": "canny", "end": 10**400}]}, "digits"),
        ({"further": [{"condition": "canny", "mode": None}]}, "mode must be one of"),
        ({"further": [{"condition": "canny", "hint": "none.png"}]}, "none.png"),
        ({"further": [{"condition": "canny", "hint": "requests.jsonl"}]}, "requests.jsonl"),
        ({"region": "none.png"}, "none.png"),
        ({"region": ["left.png"]}, "region must be the path of a file"),
        ({"control_mode": 3}, "control_mode must be text"),
    ],
)
def test_hostile_lines_are_one_sentence(tmp_path, row, message):
    (job,) = jobs_of_lines(lines(tmp_path, row), {})
    job.files(), job.asked()
    with pytest.raises(ValueError, match=message) as caught:
        job.request()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_an_entry_of_a_command_line():
    text = "canny,low_threshold=30,strength=0.5,mode=prompt,hint=a/b.png"
    assert further_of_text(text) == {
        "condition": "canny", "options": {"low_threshold": 30.0}, "strength": 0.5, "mode": "prompt",
        "hint": "a/b.png",
    }  # fmt: skip
    for bad, message in (
        ("canny,0.5", "'0.5' is no name=value"), ("canny,strength=x", "strength must be a number, got 'x'"),
        ("cany", "no condition 'cany'"), ("canny,width=3", "unknown keys 'width'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            further_of_text(bad)


def test_the_command_s_jobs_and_its_errors(tmp_path, capsys):
    save_png(tmp_path / "a.png", draw())
    arguments = [str(tmp_path / "a.png"), str(tmp_path / "out"), "--prompt", "x", "--control-end", "0.5"]
    further = [
        "--further",
        "canny,strength=0.5",
        "--further",
        "scribble",
        "--region",
        str(tmp_path / "a.png"),
    ]
    (job,) = generate.jobs_of(generate.parse_arguments([*arguments, *further]))
    request, _ = job.request()
    assert [each.condition for each in request.further] == ["canny", "scribble"]
    assert request.control_end == 0.5 and request.region.shape == draw().shape[:2]
    model = ["--model", "tiny", "--device", "cpu"]
    assert generate.main([*arguments, *model, "--further", "cany"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_maps_of_further_controls_are_no_sources(tmp_path):
    for name in ("a.png", "a_map.png", "a_map2.png", "b_map.png"):
        save_png(tmp_path / name, draw())
    assert [job.name for job in jobs_of_pictures(tmp_path, {}, repeat=True)] == ["a", "b_map"]
