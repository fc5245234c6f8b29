"""Request to pictures: the original's numbers, checks, seeds, cancelling, memory, metadata, adherence."""

from __future__ import annotations

import threading
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from front.small_page import GRASS, HOUSE, SKY, ColorDetector, draw
from golden_data import load_golden, relative_error

from annotator.ade20k import colorize
from annotator.util import HWC3, resize_image
from cldm.ddim_hacked import DDIMSampler
from controlnet.conditions.seg.adherence import measure_adherence
from controlnet.generation import generator as generator_module
from controlnet.generation import memory
from controlnet.generation.generator import Generator, result_size
from controlnet.generation.loading import load_generator
from controlnet.generation.models import find_model
from controlnet.generation.packing import pack_hint, unpack_hint
from controlnet.generation.png import read_metadata, read_request, save_png
from controlnet.generation.request import (
    RANGES,
    Request,
    RequestError,
    request_from_settings,
)
from controlnet.generation.samplers import SAMPLERS
from controlnet.generation.sampling import control_scales
from controlnet.generation.watcher import Cancelled, GenerationError
from ldm.modules import strips


def ask(picture=None, **changes) -> Request:
    settings = {"image_resolution": 64, "detect_resolution": 64, "ddim_steps": 2, "seed": 7, **changes}
    return Request(draw() if picture is None and "hint" not in changes else picture, "a house", **settings)


@torch.no_grad()
def originals_process(model, detector, request: Request) -> list[np.ndarray]:
    """The original's order of operations, on torch's global random numbers."""
    r = request
    picture = HWC3(r.input_image)
    detected = HWC3(colorize(detector.labels(resize_image(picture, r.detect_resolution))))
    height, width, _ = resize_image(picture, r.image_resolution).shape
    detected = cv2.resize(detected, (width, height), interpolation=cv2.INTER_NEAREST)
    control = torch.from_numpy(detected.copy()).float() / 255.0
    control = torch.stack([control] * r.num_samples).permute(0, 3, 1, 2).clone()
    torch.manual_seed(r.seed)
    text = model.get_learned_conditioning([r.prompt + ", " + r.a_prompt] * r.num_samples)
    negative = model.get_learned_conditioning([r.n_prompt] * r.num_samples)
    cond = {"c_concat": [control], "c_crossattn": [text]}
    uncond = {"c_concat": None if r.guess_mode else [control], "c_crossattn": [negative]}
    count = len(model.control_scales)
    guessed = [r.strength * (0.825 ** float(count - 1 - i)) for i in range(count)]
    model.control_scales = guessed if r.guess_mode else [r.strength] * count
    samples, _ = DDIMSampler(model).sample(
        r.ddim_steps,
        r.num_samples,
        (4, height // 8, width // 8),
        cond,
        verbose=False,
        eta=r.eta,
        unconditional_guidance_scale=r.scale,
        unconditional_conditioning=uncond,
    )
    model.control_scales = [1.0] * count
    decoded = model.decode_first_stage(samples).permute(0, 2, 3, 1) * 127.5 + 127.5
    return [detected, *decoded.numpy().clip(0, 255).astype(np.uint8)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_samples": 2, "eta": 1.0, "strength": 0.6, "scale": 4.0},
        {"guess_mode": True, "num_samples": 2},
        {"picture": draw(70, 150), "image_resolution": 64, "detect_resolution": 128},
        {"picture": draw(64, 64)[:, :, 0], "scale": 1.0},
    ],
    ids=["plain", "batch", "guess", "wide", "grey"],
)
def test_same_pictures_as_the_originals_process(generator, changes):
    request = ask(**changes)
    result = generator.generate(request)
    detected, *pictures = originals_process(generator.model, generator.condition().detector, result.request)
    np.testing.assert_array_equal(result.shown, detected)
    assert len(result.pictures) == len(pictures)
    for ours, theirs in zip(result.pictures, pictures, strict=True):
        # A value on the edge of two integers may fall either way; more than that is another picture.
        assert np.abs(ours.astype(int) - theirs).max() <= 1
        assert (ours == theirs).mean() > 0.999


def test_golden_latents(generator, monkeypatch):
    tensors, case = load_golden("sampling")
    model = generator.model
    halves = []
    for prompts in (case["prompt"], case["negative"]):
        context = model.get_learned_conditioning(prompts)
        halves.append(
            {"c_concat": [tensors["hint"]], "c_crossattn": [context], "control_scales": model.control_scales}
        )
    latents = []
    monkeypatch.setattr(generator_module, "guided_conditions", lambda *a, **k: tuple(halves))
    monkeypatch.setattr(
        memory.MemorySaver, "decode", lambda self, z: latents.append(z) or torch.zeros(2, 3, 64, 64)
    )
    generator.generate(ask(num_samples=2, ddim_steps=5, seed=2024, scale=9.0))
    assert relative_error(latents[0], tensors["sample.seed2024"]) < 1e-3


def test_control_and_prompt_reach_the_picture(generator, house_map):
    plain = generator.generate(ask(hint=house_map)).pictures[0].astype(int)
    for changes in ({"strength": 0.0}, {"a_prompt": "snow"}, {"n_prompt": ""}, {"scale": 2.0}, {"seed": 8}):
        other = generator.generate(ask(hint=house_map, **changes)).pictures[0]
        assert np.abs(plain - other).mean() > 0.5, changes


def test_guess_mode_scales_are_the_originals():
    assert control_scales(0.8, 13, guess_mode=True) == [0.8 * 0.825 ** float(12 - i) for i in range(13)]


def test_a_map_stands_for_a_run_of_the_detector(generator, house_map):
    detected = generator.generate(ask())
    assert generator.condition().detector.calls == [(64, 64, 3)]
    brought = generator.generate(ask(hint=house_map))
    assert generator.condition().detector.calls == [(64, 64, 3)]
    np.testing.assert_array_equal(detected.pictures[0], brought.pictures[0])


@pytest.mark.parametrize(
    ("height", "width", "resolution"), [(512, 768, 500), (512, 1920, 500), (64, 64, 64), (768, 512, 490)]
)
def test_a_map_of_a_possible_size_keeps_it(height, width, resolution):
    assert result_size(ask(hint=np.zeros((height, width), np.uint8), image_resolution=resolution)) == (
        width,
        height,
    )


# Seeds ------------------------------------------------------------------------------------------------------


def test_minus_one_draws_a_seed_that_repeats_the_picture(generator):
    first = generator.generate(ask(seed=-1))
    assert 0 <= first.seeds[0] <= 65535
    again = generator.generate(first.request)
    np.testing.assert_array_equal(first.pictures[0], again.pictures[0])


def test_one_seed_a_picture_makes_each_repeatable_alone(generator):
    batch = generator.generate(ask(num_samples=3, seed=40, eta=0.7, per_sample_seeds=True))
    assert batch.seeds == (40, 41, 42)
    for seed, picture in zip(batch.seeds, batch.pictures, strict=True):
        alone = generator.generate(ask(seed=seed, eta=0.7)).pictures[0]
        assert np.abs(alone.astype(int) - picture).max() <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_tells_its_steps_and_repeats_from_the_picture(sampler, generator, tmp_path):
    """With a seed for each picture, guess mode and guidance in a part of the run."""
    told = []
    request = ask(
        sampler=sampler, num_samples=2, per_sample_seeds=True, seed=3, ddim_steps=4, guess_mode=True,
        scale=4.0, guidance_start=0.2, guidance_end=0.8,
    )  # fmt: skip
    result = generator.generate(request, on_step=told.append)
    assert [(step.index, step.total) for step in told] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert told[-1].preview().dtype == np.uint8
    save_png(tmp_path / "1.png", result.pictures[1], result.metadata(1))
    again = read_request(tmp_path / "1.png")
    assert (again.sampler, again.guidance_start, again.guidance_end) == (sampler, 0.2, 0.8)
    alone = generator.generate(replace(again, num_samples=1, seed=4)).pictures[0]
    assert np.abs(alone.astype(int) - result.pictures[1]).max() <= 1
    with pytest.raises(Cancelled, match="after step 1 of 4"):
        generator.generate(request, should_stop=lambda: True)


def test_threads_do_not_share_random_numbers(generator):
    alone = {seed: generator.generate(ask(seed=seed, eta=1.0)).pictures[0] for seed in range(4)}
    state = torch.get_rng_state()
    together = {}

    def draw_with(seed):
        together[seed] = generator.generate(ask(seed=seed, eta=1.0)).pictures[0]

    threads = [threading.Thread(target=draw_with, args=(seed,)) for seed in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, picture in alone.items():
        np.testing.assert_array_equal(together[seed], picture)
    assert torch.equal(torch.get_rng_state(), state)


# Steps ------------------------------------------------------------------------------------------------------


def test_steps_are_told_with_previews_and_can_stop_the_run(generator):
    steps = []

    def on_step(step):
        steps.append((step.index, step.total, step.preview().shape, step.preview().dtype))

    generator.generate(ask(ddim_steps=3, num_samples=2), on_step=on_step)
    total = steps[-1][1]
    assert steps == [(i, total, (2, 64, 64, 3), np.uint8) for i in range(total)]

    steps.clear()
    with pytest.raises(Cancelled, match="step 2 of 5"):
        generator.generate(ask(ddim_steps=5), on_step=on_step, should_stop=lambda: len(steps) == 2)
    before = generator.generate(ask()).pictures[0]
    np.testing.assert_array_equal(before, generator.generate(ask()).pictures[0])


def test_nan_latents_are_an_error_that_names_the_step(generator, monkeypatch):
    apply_model, times = generator.model.apply_model, set()

    def poisoned(x, t, *arguments, **named):
        times.add(int(t[0]))
        output = apply_model(x, t, *arguments, **named)
        return output * float("nan") if len(times) == 2 else output

    monkeypatch.setattr(generator.model, "apply_model", poisoned)
    with pytest.raises(GenerationError, match=r"step 2 of 4 are not finite"):
        generator.generate(ask(ddim_steps=4))


# Memory -----------------------------------------------------------------------------------------------------


def test_out_of_memory_is_tried_once_more_with_slices(generator, monkeypatch):
    plain = generator.generate(ask()).pictures[0]
    tried = []
    sample = Generator._sample

    def first_fails(self, request, labels, watcher, save_memory, origin=None):
        tried.append(save_memory)
        if len(tried) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return sample(self, request, labels, watcher, save_memory, origin)

    monkeypatch.setattr(Generator, "_sample", first_fails)
    result = generator.generate(ask())
    assert tried == [False, True]
    assert np.abs(plain.astype(int) - result.pictures[0]).max() <= 1


def test_large_pictures_are_decoded_in_strips_unasked(generator, monkeypatch):
    plain = generator.generate(ask()).pictures
    assembled, put_together = [], strips._assembled
    monkeypatch.setattr(
        strips, "_assembled", lambda *given: assembled.append(put_together(*given)) or assembled[-1]
    )
    monkeypatch.setattr(strips, "LARGE_MAP", 0)
    monkeypatch.setattr(strips, "ROWS", 16)
    monkeypatch.setattr(strips, "PIXELS", 1)
    pictures = generator.generate(ask()).pictures
    assert (64, 64) in {tuple(each.shape[2:]) for each in assembled}
    assert np.abs(pictures[0].astype(int) - plain[0]).max() <= 1


def test_what_never_fits_is_told_with_a_size_that_does(generator, monkeypatch):
    decode = memory.MemorySaver.decode

    def small_only(self, latents):
        if latents[:, 0].numel() > 64:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return decode(self, latents)

    monkeypatch.setattr(memory.MemorySaver, "decode", small_only)
    with pytest.raises(
        GenerationError, match=r"2 x 128x128 .* num_samples 1 at image_resolution 64 would fit"
    ):
        generator.generate(ask(num_samples=2, image_resolution=128))
    assert generator.generate(ask()).pictures[0].shape == (64, 64, 3)


def test_networks_rest_in_main_memory_while_others_work(small_model, monkeypatch):
    moves = []
    names = {id(module): name for name, module in small_model.named_children()}
    monkeypatch.setattr(
        torch.nn.Module, "to", lambda self, device: moves.append((names[id(self)], str(device)))
    )
    saver = memory.MemorySaver(small_model, torch.device("cuda"), enabled=True)
    with saver:
        moves.clear()
        with saver.working(small_model.first_stage_model):
            assert moves == [("first_stage_model", "cuda")]
        assert moves[1:] == [("first_stage_model", "cpu")]
        assert {m.slice_size for m in small_model.modules() if hasattr(m, "slice_size")} == {1}
    assert {m.slice_size for m in small_model.modules() if hasattr(m, "slice_size")} == {None}
    assert {device for _, device in moves[1:]} == {"cpu"}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("save_memory", [False, True])
def test_on_a_gpu_in_half_precision(generator, model_files, save_memory):
    files = find_model(str(model_files.config), str(model_files.weights), str(model_files.weights))
    on_gpu = load_generator(files, "cuda", "fp16", save_memory)
    on_gpu.detector = generator.condition().detector
    result = on_gpu.generate(ask(num_samples=2, per_sample_seeds=True), measure=True)
    again = on_gpu.generate(ask(num_samples=2, per_sample_seeds=True))
    assert result.pictures[0].std() > 1
    np.testing.assert_array_equal(result.pictures, again.pictures)


# Requests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RANGES)
def test_numbers_out_of_range_are_refused_by_name(name):
    low, high = RANGES[name]
    by_model = name in ("image_resolution", "detect_resolution", "scale")
    nothing = () if by_model else (None,)  # where the model has its own value
    for value in (low - 1, high + 1, float("nan"), float("inf"), "3", True, 10**400, *nothing):
        with pytest.raises(RequestError, match=name):
            ask(**{name: value})
    lowest = 0.5 if name == "control_end" else low  # a part of the run that is empty is refused
    assert getattr(ask(**{name: lowest, **({"seed": 1} if name != "seed" else {})}), name) == lowest


@pytest.mark.parametrize(
    ("picture", "why"),
    [
        (None, "neither"),
        (np.zeros((0, 5, 3), np.uint8), "empty"),
        (np.zeros((4, 4, 3)), "uint8"),
        (np.zeros((4, 4, 2), np.uint8), "input_image"),
        (np.broadcast_to(np.uint8(0), (8000, 4001, 3)), "32 megapixels"),
        ("house.png", "array"),
    ],
)
def test_bad_pictures_are_refused(picture, why):
    with pytest.raises(RequestError, match=why):
        Request(picture, "a house")


def test_pictures_that_are_too_long_are_refused():
    for changes in ({"picture": draw(64, 64)[:1]}, {"hint": np.zeros((1, 64000), np.uint8)}):
        with pytest.raises(RequestError, match="8 times the short one: crop it"):
            ask(image_resolution=1024, detect_resolution=1024, **changes)


def test_bad_maps_and_settings_are_refused():
    for labels in (np.full((4, 4), 150, np.uint8), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4), np.uint8)):
        with pytest.raises(RequestError, match="hint"):
            ask(hint=labels)
    with pytest.raises(RequestError, match="Unknown settings sede"):
        request_from_settings({"prompt": "x", "sede": 1}, draw())
    with pytest.raises(RequestError, match="prompt is missing"):
        request_from_settings({}, draw())
    with pytest.raises(RequestError, match=r"sampler must be one of ddim, plms, .*, got 'dim'"):
        ask(sampler="dim")
    with pytest.raises(RequestError, match=r"eta 0\.5 is DDIM's alone: with sampler unipc it must be 0"):
        ask(sampler="unipc", eta=0.5)
    with pytest.raises(RequestError, match=r"guidance_start 0\.5 is above guidance_end 0\.4"):
        ask(guidance_start=0.5, guidance_end=0.4)


def test_packed_maps_come_back_and_lies_do_not(house_map):
    packed = pack_hint(house_map)
    np.testing.assert_array_equal(unpack_hint(packed), house_map)
    bomb = pack_hint(np.zeros((4000, 4000), np.uint8))
    for lie in (
        {**packed, "width": 63},
        {**bomb, "width": 2, "height": 2},
        {**packed, "labels": "!"},
        {},
        None,
        3,
    ):
        with pytest.raises(RequestError, match="stored hint"):
            unpack_hint(lie)


def test_a_saved_picture_repeats_itself(generator, tmp_path):
    result = generator.generate(ask(picture=draw(90, 140), num_samples=2, seed=-1))
    save_png(tmp_path / "1.png", result.pictures[1], result.metadata(1))
    content = read_metadata(tmp_path / "1.png")
    assert (content["index"], content["seed"], content["model"]) == (1, result.seeds[1], "small")
    again = generator.generate(read_request(tmp_path / "1.png"))
    np.testing.assert_array_equal(again.pictures[1], result.pictures[1])
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "1.png"))[:, :, ::-1], result.pictures[1])
    assert [path.name for path in tmp_path.iterdir()] == ["1.png"]


def test_pictures_without_a_request_say_so(tmp_path):
    save_png(tmp_path / "plain.png", draw())
    (tmp_path / "text.png").write_text("no picture")
    save_png(tmp_path / "broken.png", draw(), '{"request": ')
    for name, why in (("plain", "carries no request"), ("text", "cannot be read"), ("broken", "damaged")):
        with pytest.raises(RequestError, match=f"{name}.png: .*{why}"):
            read_request(tmp_path / f"{name}.png")


# Adherence --------------------------------------------------------------------------------------------------


def test_adherence_of_known_maps():
    wanted = np.array([[SKY, SKY], [GRASS, HOUSE]], np.uint8)
    found = np.array([[SKY, GRASS], [GRASS, GRASS]], np.uint8)
    score = measure_adherence(wanted, found)
    assert score.pixel_accuracy == 0.5
    assert score.miou == pytest.approx((1 / 2 + 1 / 3 + 0) / 3)
    assert [(c.name, round(c.iou, 3), c.share) for c in score.classes] == [
        ("house", 0.0, 0.25),
        ("grass", 0.333, 0.25),
        ("sky", 0.5, 0.5),
    ]
    np.testing.assert_array_equal(score.departs, [[False, True], [False, True]])


def test_specks_count_for_the_number_and_not_for_the_verdict():
    wanted = np.full((100, 100), SKY, np.uint8)
    wanted[50:] = GRASS
    found, tree = wanted.copy(), 4
    found[0, :60], found[1, :60] = HOUSE, tree  # 0.6 % each
    score = measure_adherence(wanted, found)
    large = (4880 / 5000 + 1) / 2
    assert score.miou == pytest.approx(large / 2) and score.agreement == pytest.approx(large)
    assert score.remark == "0.99 without specks" and score.summary()["agreement"] == 0.988
    found[2, :60] = HOUSE  # 1.2 %
    score = measure_adherence(wanted, found)
    assert score.agreement == pytest.approx((4820 / 5000 + 1) / 3) and score.remark == "0.65 without specks"
    assert measure_adherence(wanted, wanted).remark == ""
    # A speck that is kept makes the number better than the verdict, which is said as well.
    wanted[0, :60] = found[0, :60]
    found[2, :60], found[10:30], found[1] = SKY, GRASS, SKY
    score = measure_adherence(wanted, found)
    assert score.agreement < score.miou and score.remark == f"{score.agreement:.2f} without specks"
    noise = np.random.default_rng(0).integers(0, 150, (100, 100)).astype(np.uint8)  # nothing but specks
    assert 0 <= measure_adherence(noise, noise[::-1]).agreement <= 1


def test_classes_of_one_colour_count_as_one():
    road, skyscraper = np.full((2, 2), 6, np.uint8), np.full((2, 2), 48, np.uint8)
    assert measure_adherence(road, skyscraper).miou == 1.0


def test_measured_adherence_is_that_of_the_detector_on_the_result(generator):
    result = generator.generate(ask(num_samples=2), measure=True)
    detector = ColorDetector()
    for picture, score in zip(result.pictures, result.scores, strict=True):
        assert score.pixel_accuracy == (detector.labels(picture) == result.hint).mean()
