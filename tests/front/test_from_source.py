"""Canvas, mask and sizes as arithmetic; then whole runs: what is kept, what repeats, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from front.small_page import ColorDetector, draw
from PIL import Image

from controlnet.commands import generate
from controlnet.generation.checks import RequestError
from controlnet.generation.from_source import blended, extended, feathered, kept_latents, make_canvas
from controlnet.generation.generator import Generator
from controlnet.generation.jobs import jobs_of_lines
from controlnet.generation.packing import pack_hint, read_mask, unpack_source
from controlnet.generation.png import read_request, save_png
from controlnet.generation.request import Request
from controlnet.generation.samplers import SAMPLERS
from controlnet.generation.sampling import noise_generators, second_seed
from controlnet.generation.sizes import Place, final_size, grown, result_size
from controlnet.generation.watcher import Step
from controlnet.page.links import link_fragment, misses_source, read_fragment
from controlnet.pictures import PictureError


def ask(**changes) -> Request:
    """A run of 64 pixels over `draw()`, which is its own hint."""
    settings = {"source": draw(), "image_resolution": 64, "detect_resolution": 64, "ddim_steps": 4, "seed": 7}
    return Request(**{"input_image": None, "prompt": "a house", **settings, **changes})


def square_mask(size: int = 64) -> np.ndarray:
    """The middle is painted."""
    mask = np.zeros((size, size), np.uint8)
    mask[size * 3 // 8 : size * 5 // 8, size * 3 // 8 : size * 5 // 8] = 255
    return mask


# Arithmetic -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "before", "after", "wanted"),
    [
        (256, 0, 0, (0, 0)), (256, 64, 0, (64, 0)), (256, 0, 100, (0, 128)), (256, 10, 0, (64, 0)),
        (256, 32, 32, (32, 32)), (256, 40, 32, (40, 88)),
    ],
)  # fmt: skip
def test_sides_grow_to_multiples_of_64(side, before, after, wanted):
    assert grown(side, before, after) == wanted
    assert (side + sum(wanted)) % 64 == 0


def test_sizes_of_canvas_and_second_pass():
    assert result_size(ask(source=draw(70, 150))) == (128, 64)
    assert result_size(ask(source=draw(128, 192), image_resolution=128)) == (192, 128), "it keeps its own"
    extended = ask(outpaint={"left": 64, "bottom": 10})
    assert result_size(extended) == (128, 128)
    assert final_size(replace(extended, second_pass=2)) == (256, 256)
    assert final_size(ask(source=draw(64, 320), second_pass=1.5)) == (512, 128), "480 is none, 96 is none"


def test_the_feather_grows_and_leaves_the_rest_alone():
    mask = square_mask()
    shares = [feathered(mask, feather) for feather in (0, 1, 4, 8, 16, 200)]
    for less, more in pairwise(shares):
        assert (more >= less).all() and more.sum() > less.sum()
    for feather, share in zip((0, 1, 4, 8), shares, strict=False):
        assert (share[mask == 255] == 1).all() and share.dtype == np.float32
        for y, x in ((5, 5), (20, 30)):
            distance = np.hypot(*(np.argwhere(mask == 255) - (y, x)).T).min()
            assert share[y, x] == pytest.approx(np.clip(1 - distance / (feather + 1), 0, 1), abs=1e-6)
    line = feathered(mask, 8)[32, 39:50]
    assert (np.diff(line) < 0).sum() == 9, "from 1 to 0 in nine steps"


def test_a_soft_mask_is_a_blend_by_itself():
    mask = np.full((8, 8), 51, np.uint8)
    pictures, kept = np.full((1, 8, 8, 3), 200, np.uint8), np.full((1, 8, 8, 3), 100, np.uint8)
    assert (blended(pictures, kept, feathered(mask, 4)) == 120).all()


def test_blending_keeps_every_value_to_the_last_bit():
    kept = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    assert (blended(255 - kept, kept, np.zeros((16, 16), np.float32)) == kept).all()
    assert (blended(255 - kept, kept, np.ones((16, 16), np.float32)) == 255 - kept).all()


def test_latents_are_kept_where_nothing_of_them_is_painted():
    painted = np.zeros((64, 64), np.float32)
    painted[15, 16] = 0.1
    keep = kept_latents(painted)
    assert keep.shape == (8, 8) and keep.sum() == 63 and keep[1, 2] == 0
    assert kept_latents(np.ones((64, 64), np.float32)) is None


def test_the_new_area_carries_the_border_on():
    source = draw()
    canvas = make_canvas(ask(outpaint={"right": 64}, feather=4))
    assert canvas.picture.shape == (64, 128, 3)
    np.testing.assert_array_equal(canvas.picture[:, :64], source)
    new = canvas.picture[:, 64:].astype(int)
    for row in (4, 60):
        assert np.abs(new[row] - source[row, -1]).max() <= 12
    assert (canvas.painted[:, 64:] == 1).all() and (canvas.painted[:, :59] == 0).all()
    assert extended(source, Place(64, 64, 0, 0, 64, 64)) is source


# Whole runs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_outside_the_mask_the_result_is_the_source_to_the_last_bit(generator, sampler):
    request = ask(mask=square_mask(), feather=3, denoise=0.8, sampler=sampler, num_samples=2)
    result = generator.generate(request)
    painted = feathered(request.mask, 3)
    for picture in result.pictures:
        np.testing.assert_array_equal(picture[painted == 0], draw()[painted == 0])
        assert np.abs(picture.astype(int) - draw())[painted == 1].mean() > 2
    assert not np.array_equal(*result.pictures)


@pytest.mark.parametrize("sampler", ["ddim", "euler_a", "unipc"])
def test_each_picture_of_a_batch_is_what_its_seed_gives_alone(generator, sampler):
    request = ask(
        mask=square_mask(), sampler=sampler, per_sample_seeds=True, num_samples=2, second_pass=2, ddim_steps=2
    )
    together = generator.generate(request).pictures
    alone = generator.generate(replace(request, seed=8, num_samples=1)).pictures[0]
    assert np.abs(together[1].astype(int) - alone).max() <= 1
    np.testing.assert_array_equal(generator.generate(request).pictures, together)


def test_all_painted_and_denoise_1_is_the_plain_call(generator):
    whole = np.full((64, 64), 255, np.uint8)
    plain = generator.generate(Request(draw(), "a house", image_resolution=64, detect_resolution=64, seed=7))
    painted = generator.generate(ask(mask=whole, denoise=1.0, ddim_steps=20))
    np.testing.assert_array_equal(painted.pictures[0], plain.pictures[0])
    for denoise in (0.5, 0.9):
        masked, free = (
            generator.generate(ask(mask=mask, denoise=denoise)).pictures[0] for mask in (whole, None)
        )
        np.testing.assert_array_equal(masked, free)


def test_denoise_1_without_a_mask_still_knows_the_source(generator):
    pictures = [
        generator.generate(ask(source=source, denoise=1.0, hint=ColorDetector().labels(draw()))).pictures[0]
        for source in (draw(), 255 - draw())
    ]
    assert 0 < np.abs(pictures[0].astype(int) - pictures[1]).mean() < 40


@pytest.mark.parametrize("denoise", [0.0, 0.2])
def test_no_step_gives_the_source_back(generator, denoise):
    told: list[Step] = []
    result = generator.generate(ask(denoise=denoise, num_samples=2), on_step=told.append, measure=True)
    for picture in result.pictures:
        np.testing.assert_array_equal(picture, draw())
    assert not told
    said = any("denoise 0.2 of 4 steps is no step" in remark for remark in result.remarks)
    assert said == bool(denoise)


def test_outpainting_keeps_the_source_in_its_place(generator):
    request = ask(outpaint={"left": 64}, feather=0, denoise=1.0)
    result = generator.generate(request)
    assert result.pictures[0].shape == (64, 128, 3) and result.hint.shape == (64, 128)
    np.testing.assert_array_equal(result.pictures[0][:, 64:], draw())
    np.testing.assert_array_equal(result.hint[:, 64:], ColorDetector().labels(draw()))
    odd = generator.generate(replace(request, outpaint={"left": 10, "top": 20}))
    assert "The canvas of 74x84 became 128x128: sides are multiples of 64." in odd.remarks
    brought = generator.generate(replace(request, hint=np.zeros((64, 128), np.uint8)))
    assert not brought.hint.any()
    with pytest.raises(RequestError, match="hint is 64x64 pixels and the picture will be 128x64"):
        generator.generate(replace(request, hint=np.zeros((64, 64), np.uint8)))


def test_the_source_itself_as_input_image_is_the_whole_canvas(generator):
    request = ask(outpaint={"left": 64})
    one, other = (generator.generate(replace(request, input_image=given)) for given in (None, draw()))
    np.testing.assert_array_equal(one.pictures[0], other.pictures[0])
    with pytest.raises(RequestError, match="input_image is 64x64 pixels and the picture will be 128x64"):
        generator.generate(replace(request, input_image=draw()[::-1]))


# The second pass --------------------------------------------------------------------------------------------


def test_no_second_pass_is_the_plain_call(generator):
    plain = Request(draw(), "a house", image_resolution=64, detect_resolution=64, seed=7, ddim_steps=2)
    one, other = (
        generator.generate(replace(plain, second_pass=1.0, second_denoise=share)) for share in (0.5, 0.9)
    )
    np.testing.assert_array_equal(one.pictures[0], other.pictures[0])


@pytest.mark.parametrize(("factor", "side"), [(1.5, 128), (2.0, 128)])
def test_a_second_pass_is_larger_and_its_steps_count(generator, factor, side):
    told: list[Step] = []
    result = generator.generate(
        Request(
            draw(), "a house", image_resolution=64, detect_resolution=64, seed=7, ddim_steps=4,
            second_pass=factor, second_denoise=0.5,
        ),
        on_step=told.append,
        measure=True,
    )  # fmt: skip
    assert result.pictures[0].shape == (side, side, 3) == result.control_picture.shape
    assert result.hint.shape == (side, side) and len(result.scores) == 1
    assert [step.index for step in told] == list(range(6)) and {step.total for step in told} == {6}


def test_a_second_pass_keeps_what_the_mask_keeps(generator):
    fine = draw(128, 128)
    fine[::2, ::2] = 0  # a source that is larger than the first pass
    result = generator.generate(ask(source=fine, mask=square_mask(128), feather=2, second_pass=2))
    painted = feathered(square_mask(128), 4)
    np.testing.assert_array_equal(result.pictures[0][painted == 0], fine[painted == 0])


def test_the_hint_of_a_second_pass_is_the_best_there_is(generator, house_map):
    large = house_map.repeat(4, axis=0).repeat(4, axis=1)
    request = Request(None, "a house", image_resolution=64, ddim_steps=1, hint=large, seed=1, second_pass=2)
    result = generator.generate(replace(request, image_resolution=64))
    np.testing.assert_array_equal(result.hint, house_map.repeat(2, axis=0).repeat(2, axis=1))
    np.testing.assert_array_equal(result.best_hint, large)


def test_a_second_pass_has_noise_of_its_own():
    assert second_seed(7) == second_seed(7) != second_seed(8)
    request = ask(per_sample_seeds=True, num_samples=2)
    first = noise_generators(request, torch.device("cpu"))
    assert [each.initial_seed() for each in first] == [7, 8]


def test_out_of_memory_in_the_second_pass_is_tried_once_more(generator, monkeypatch):
    tried = []
    sample = Generator._sample

    def large_fails(self, request, control, watcher, save_memory, origin=None):
        tried.append((control.shape[0], save_memory))
        if control.shape[0] == 128 and not save_memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return sample(self, request, control, watcher, save_memory, origin)

    plain = generator.generate(ask(second_pass=2)).pictures[0]
    monkeypatch.setattr(Generator, "_sample", large_fails)
    again = generator.generate(ask(second_pass=2)).pictures[0]
    assert tried == [(64, False), (128, False), (128, True)]
    assert np.abs(plain.astype(int) - again).max() <= 1


# What comes back and what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"mask": square_mask(), "feather": 3}, {"outpaint": {"left": 64, "bottom": 10}}, {"second_pass": 2.0}],
    ids=["inpainting", "outpainting", "second pass"],
)
def test_a_saved_picture_repeats_itself(generator, tmp_path, changes):
    request = ask(denoise=0.6, ddim_steps=2, detect_resolution=128, **changes)
    result = generator.generate(request)
    save_png(tmp_path / "a.png", result.pictures[0], result.metadata(0))
    back = read_request(tmp_path / "a.png")
    np.testing.assert_array_equal(back.source, draw())
    assert (back.denoise, back.feather, back.outpaint) == (0.6, request.feather, request.outpaint)
    np.testing.assert_array_equal(generator.generate(back).pictures[0], result.pictures[0])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"source": None, "input_image": draw(), "mask": square_mask()}, "a mask but no source"),
        ({"source": None, "input_image": draw(), "outpaint": {"left": 64}}, "outpaint extends a source"),
        ({"source": None}, "neither"),
        ({"mask": np.zeros((64, 64), np.uint8)}, "The mask is empty: paint white"),
        ({"mask": np.zeros((64, 128), np.uint8)}, "mask is 128x64 pixels and the source 64x64"),
        ({"mask": np.zeros((64, 64, 3), np.uint8)}, "mask must be a uint8 array"),
        ({"mask": "mask.png"}, "mask must be"),
        ({"denoise": 1.1}, "denoise must be from 0 to 1, got 1.1"),
        ({"denoise": -0.1}, "denoise must be from 0 to 1"),
        ({"feather": 2.5}, "feather must be a whole number"),
        ({"outpaint": {"up": 64}}, "outpaint must be an object of pixels by left, top, right, bottom"),
        (
            {"outpaint": {"left": 1025}},
            "outpaint left must be a whole number of pixels from 0 to 1024, got 1025",
        ),
        ({"outpaint": 64}, "outpaint must be an object"),
        ({"second_pass": 3}, "second_pass must be from 1 to 2"),
        ({"second_pass": 2, "image_resolution": 1088}, "2176 pixels, above the largest short side of 2048"),
        ({"source": np.zeros((0, 4, 3), np.uint8)}, "source is empty"),
    ],
)
def test_bad_combinations_are_told_in_one_line(changes, why):
    with pytest.raises(RequestError, match=why) as caught:
        ask(**changes)
    assert "\n" not in str(caught.value)


def test_a_canvas_that_is_too_long_is_refused(generator):
    with pytest.raises(RequestError, match="outpaint makes 1024x64 pixels; the long side may be 8 times"):
        generator.generate(ask(outpaint={"right": 960}))


def test_a_large_source_is_told_by_its_hash(generator, tmp_path, monkeypatch):
    monkeypatch.setattr("controlnet.generation.packing.MAX_SOURCE_TEXT", 100)
    result = generator.generate(ask(denoise=0.0))
    save_png(tmp_path / "a.png", result.pictures[0], result.metadata(0))
    with pytest.raises(
        RequestError, match=r"too large to be kept in it \('[0-9a-f]{16}'\): give that picture"
    ):
        read_request(tmp_path / "a.png")


@pytest.mark.parametrize("lie", [3, {}, {"png": "!"}, {"png": "AAAA"}, {"sha256": "x" * 10**6}])
def test_lies_about_a_source_are_one_line(lie):
    with pytest.raises(RequestError) as caught:
        unpack_source(lie)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_masks_from_files(tmp_path):
    Image.fromarray(square_mask()).save(tmp_path / "grey.png")
    Image.fromarray(square_mask()).convert("1").save(tmp_path / "bits.png")
    Image.fromarray(square_mask()).convert("RGB").save(tmp_path / "colour.png")
    for name in ("grey", "bits", "colour"):
        np.testing.assert_array_equal(read_mask(tmp_path / f"{name}.png"), square_mask())
    see_through = np.zeros((8, 8, 4), np.uint8)
    Image.fromarray(see_through, "RGBA").save(tmp_path / "alpha.png")
    with pytest.raises(PictureError, match="black and white; this one has transparent pixels"):
        read_mask(tmp_path / "alpha.png")


# Lines of JSON and the command line -------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A picture and a mask."""
    save_png(tmp_path / "house.png", draw())
    save_png(tmp_path / "mask.png", square_mask())
    return tmp_path


def test_lines_name_source_and_mask(folder):
    rows = [
        {"prompt": "x", "source": "house.png", "mask": "mask.png", "denoise": 0.6, "outpaint": {"left": 64}},
        {"prompt": "x", "image": "house.png", "mask": "mask.png"},
        {"prompt": "x", "source": 7},
    ]
    (folder / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first, second, third = jobs_of_lines(folder / "r.jsonl", {})
    request, _ = first.request()
    np.testing.assert_array_equal(request.source, draw())
    np.testing.assert_array_equal(request.mask, square_mask())
    assert (request.denoise, request.outpaint, request.input_image) == (0.6, {"left": 64}, None)
    assert set(first.inputs()) == {"source", "mask"}
    assert set(first.asked()) == {"prompt", "denoise", "outpaint", "source", "mask"}
    with pytest.raises(RequestError, match="a mask but no source"):
        second.request()
    assert "source must be the path of a file, got 7" in third.problem


@pytest.mark.parametrize(
    ("options", "source", "settings"),
    [
        ([], None, {}),
        (["--second-pass", "1.5"], None, {"second_pass": 1.5}),
        (["--denoise", "0.6"], "house.png", {"denoise": 0.6}),
        (["--mask", "mask.png", "--feather", "3"], "house.png", {"feather": 3}),
        (["--outpaint", "left=64,bottom=10"], "house.png", {"outpaint": {"left": 64, "bottom": 10}}),
        (["--source", "other.png"], "other.png", {}),
    ],
    ids=str,
)
def test_options_begin_from_the_picture_itself_or_from_another(
    folder, monkeypatch, options, source, settings
):
    monkeypatch.chdir(folder)
    (job,) = generate.jobs_of(generate.parse_arguments(["house.png", "out", "--prompt", "x", *options]))
    named = {kind: str(path) for kind, path in job.inputs().items() if kind != "image"}
    mask = {"mask": "mask.png"} if "--mask" in options else {}
    assert named == {**({"source": source} if source else {}), **mask}
    assert {k: v for k, v in job.settings.items() if k not in named} == {"prompt": "x", **settings}


def test_options_that_cannot_be_are_told(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (folder / "r.jsonl").write_text('{"prompt": "x", "image": "house.png"}')
    with pytest.raises(SystemExit):
        generate.parse_arguments(["house.png", "out", "--outpaint", "left:64"])
    assert "outpaint must be like left=64,bottom=128, got 'left:64'" in capsys.readouterr().err
    (job,) = generate.jobs_of(generate.parse_arguments(["r.jsonl", "out", "--source", "house.png"]))
    assert job.inputs()["source"] == Path("house.png")


def test_a_link_tells_that_a_source_is_missing():
    request = ask(denoise=0.5, outpaint={"left": 64}, mask=square_mask(), second_pass=1.5)
    fragment = link_fragment(request, pack_hint(np.zeros((64, 64), np.uint8)))
    linked, hint, _ = read_fragment(fragment)
    assert (linked.denoise, linked.outpaint, linked.second_pass) == (0.5, {"left": 64}, 1.5)
    assert hint.shape == (64, 64) and misses_source(linked) and linked.mask is None
    plain = link_fragment(Request(draw(), "a house"), pack_hint(np.zeros((64, 64), np.uint8)))
    assert not misses_source(read_fragment(plain)[0])
