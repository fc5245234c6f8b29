"""The page's endpoints over HTTP, as programs call them: thirteen inputs, many clients, limits, errors."""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import httpx
import numpy as np
import pytest
from front.small_page import GRASS, HOUSE, SKY, ColorDetector, GatedDetector, draw, start
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from annotator.ade20k import colorize
from controlnet.generation.generator import Generator
from controlnet.generation.png import read_request, save_png
from controlnet.generation.request import Request

DEFAULTS = Request(draw(), "")
NAMES = (
    "input_image", "prompt", "a_prompt", "n_prompt", "num_samples", "image_resolution", "detect_resolution",
    "ddim_steps", "guess_mode", "strength", "scale", "seed", "eta",
)  # fmt: skip


@pytest.fixture(scope="module")
def client(server) -> Client:
    return Client(server, verbose=False)


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "house.png"
    save_png(path, draw())
    return path


def process(client: Client, picture: Path, **changes) -> list[Path]:
    settings = {
        "prompt": "a house",
        "ddim_steps": 1,
        "image_resolution": 64,
        "detect_resolution": 64,
        **changes,
    }
    gallery = client.predict(handle_file(picture), api_name="/process", **settings)
    return [Path(item["image"]) for item in gallery]


def test_process_has_the_originals_thirteen_inputs_and_a_hint(client):
    parameters = client.view_api(return_format="dict")["named_endpoints"]["/process"]["parameters"]
    assert tuple(parameter["parameter_name"] for parameter in parameters) == (*NAMES, "hint")
    assert parameters[-1]["parameter_has_default"] and parameters[-1]["parameter_default"] is None
    given = {p["parameter_name"]: p["parameter_default"] for p in parameters if p["parameter_has_default"]}
    for name in NAMES[2:]:
        by_model = {"image_resolution": 64, "detect_resolution": 64, "scale": 9.0}
        expected = by_model.get(name, getattr(DEFAULTS, name))
        assert given[name] == expected, name
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {
        "/process",
        "/generate",
        "/detect",
        "/grid",
    }


def test_map_first_then_the_pictures_each_with_its_request(client, house, generator):
    detected, *pictures = process(client, house, num_samples=2, seed=5)
    np.testing.assert_array_equal(np.asarray(Image.open(detected)), colorize(ColorDetector().labels(draw())))
    request = read_request(pictures[1])
    assert (request.prompt, request.seed, request.num_samples) == ("a house", 5, 2)
    for ours, path in zip(generator.generate(request).pictures, pictures, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), ours)


def test_generate_begins_from_a_source_and_keeps_what_its_mask_keeps(client, house, tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[:32] = 255
    save_png(tmp_path / "mask.png", mask)
    settings = {"ddim_steps": 2, "seed": 5, "image_resolution": 64, "feather": 0, "denoise": 0.5}
    settings["mask"] = handle_file(tmp_path / "mask.png")
    begun = {**settings, "source": handle_file(house)}
    gallery = client.predict(input_image=None, prompt="a house", settings=begun, api_name="/generate")
    picture = np.asarray(Image.open(gallery[1]["image"]))
    np.testing.assert_array_equal(picture[32:], draw()[32:])
    assert (picture[:32] != draw()[:32]).mean() > 0.5
    np.testing.assert_array_equal(read_request(gallery[1]["image"]).mask, mask)
    with pytest.raises(AppError, match="There is a mask but no source"):
        client.predict(handle_file(house), "x", settings=settings, api_name="/generate")


def test_same_seed_same_bytes_other_seed_others(client, house):
    first, second, other = (process(client, house, seed=seed)[1].read_bytes() for seed in (11, 11, 12))
    assert first == second
    assert first != other


def test_detect_gives_the_map_and_its_classes(client, house):
    path, classes = client.predict(handle_file(house), 64, api_name="/detect")
    np.testing.assert_array_equal(np.asarray(Image.open(path)), colorize(ColorDetector().labels(draw())))
    assert {entry["class"]: entry["index"] for entry in classes} == {
        "sky": SKY,
        "grass": GRASS,
        "house": HOUSE,
    }
    assert sum(entry["share"] for entry in classes) == pytest.approx(1, abs=1e-3)


def test_a_data_url_is_a_picture_too(client):
    buffer = io.BytesIO()
    Image.fromarray(draw()).save(buffer, format="PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    _, classes = client.predict({"url": url, "meta": {"_type": "gradio.FileData"}}, 64, api_name="/detect")
    assert len(classes) == 3


def generate(client: Client, house: Path, **settings) -> list[Path]:
    small = {"ddim_steps": 2, "image_resolution": 64, "detect_resolution": 64, "seed": 5}
    gallery = client.predict(
        handle_file(house), "a house", settings={**small, **settings}, api_name="/generate"
    )
    return [Path(item["image"]) for item in gallery]


def test_generate_takes_prompts_for_classes(client, house, house_map, tmp_path):
    save_png(tmp_path / "classes.png", house_map)
    asked = {"condition": "canny", "class_prompts": {"house": "red brick"}}
    gallery = client.predict(
        handle_file(house),
        "a (house:1.2)",
        settings={"ddim_steps": 1, "image_resolution": 64, "prompt_syntax": True, "seed": 5, **asked}
        | {"class_map": handle_file(tmp_path / "classes.png")},
        condition="canny",
        api_name="/generate",
    )
    request = read_request(Path(gallery[-1]["image"]))
    assert request.class_prompts == {"house": "red brick"} and request.prompt_syntax
    np.testing.assert_array_equal(request.class_map, house_map)
    with pytest.raises(AppError, match="The map holds no boat; it holds"):
        generate(client, house, class_prompts="boat: a boat")


def test_generate_takes_several_controls(client, house, tmp_path):
    save_png(tmp_path / "left.png", np.tile(np.uint8([255, 0]), (2, 1)))
    left, picture = handle_file(tmp_path / "left.png"), handle_file(house)
    further = [
        {"condition": "canny", "hint": picture, "strength": 0.5, "region": left},
        {"condition": "seg", "image": picture, "end": 0.5},
        {"condition": "canny", "mode": "prompt", "low_threshold": 50},
    ]
    *hints, result = generate(client, house, further=further, region=left, control_start=0.5)
    assert len(hints) == 4
    request = read_request(result)
    assert [each.condition for each in request.further] == ["canny", "seg", "canny"]
    assert request.further[2].options["low_threshold"] == 50
    np.testing.assert_array_equal(request.region, np.tile(np.uint8([255, 0]), (2, 1)))
    plain = generate(client, house)
    assert plain[-1].read_bytes() == generate(client, house, further=[])[-1].read_bytes()
    assert plain[-1].read_bytes() != result.read_bytes()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"further": "canny"}, "further must be a list of objects"),
        ({"further": [{"condition": "canny", "hint": "/etc/passwd"}]}, "not one that was uploaded here"),
        ({"further": [{"condition": "canny", "hint": {"path": 3}}]}, "A file must be a path that /upload"),
        ({"region": {"path": "/etc/passwd"}}, "not one that was uploaded here"),
        ({"further": [{"condition": "seg", "strength": "1"}]}, "strength must be a number"),
        ({"control_start": 0.6, "control_end": 0.7}, "would never act"),
    ],
)
def test_what_generate_says_of_controls_that_cannot_be(client, house, settings, why):
    with pytest.raises(AppError, match=why):
        generate(client, house, **settings)


@pytest.mark.parametrize(
    ("content", "changes", "why"),
    [
        (b"", {}, "house.png: the file is empty"),
        (b"<html>no picture</html>", {}, "house.png: not a picture but a web page"),
        (None, {"image_resolution": 4096}, "4096"),
        (None, {"scale": float("inf")}, ""),
        (None, {"ddim_steps": 0}, "0"),
    ],
    ids=["empty", "html", "resolution", "scale", "steps"],
)
def test_errors_are_one_readable_line(client, tmp_path, content, changes, why, house):
    path = house
    if content is not None:
        path = tmp_path / "house.png"
        path.write_bytes(content)
    with pytest.raises((AppError, ValueError)) as caught:
        process(client, path, **changes)
    text = str(caught.value)
    assert why in text
    assert "Traceback" not in text and "\n" not in text and "/tmp" not in text


def test_unexpected_errors_stay_in_the_log(small_model, house, caplog):
    class BrokenDetector:
        def labels(self, picture):
            raise ZeroDivisionError("secret/path/of/the/server")

    for url in start(Generator(small_model, {"seg": BrokenDetector()}, resolution=64)):
        with pytest.raises(AppError, match="Something went wrong on the server"):
            process(Client(url, verbose=False), house)
    assert "secret/path/of/the/server" in caplog.text


def test_uploads_over_20_megabytes_are_refused(server):
    answer = httpx.post(
        f"{server}gradio_api/upload", files={"files": ("large.png", bytes(21_000_000))}, timeout=60
    )
    assert answer.status_code == 413


# Many users -------------------------------------------------------------------------------------------------


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc, as on Linux"
)
def test_sixty_requests_from_thirty_clients_each_get_their_own(server, tmp_path):
    def own_picture(number: int) -> np.ndarray:
        picture = np.full((64, 64, 3), ColorDetector.colors[0], np.uint8)
        picture[: number + 1, 20:40] = ColorDetector.colors[2]  # a house as high as the number
        return picture

    clients = [Client(server, verbose=False, download_files=tmp_path / f"client{n}") for n in range(30)]

    def ask(own: int) -> tuple[int, list[Path]]:
        save_png(tmp_path / f"{own}.png", own_picture(own))
        return own, process(clients[own % 30], tmp_path / f"{own}.png", seed=own)

    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(ask, range(30)))
        before = resident_megabytes()  # with thirty at a time once, every thread has its own arena
        answers += pool.map(ask, range(30, 60))
    for own, (detected, picture) in answers:
        expected = colorize(ColorDetector().labels(own_picture(own)))
        np.testing.assert_array_equal(np.asarray(Image.open(detected)), expected, err_msg=str(own))
        assert read_request(picture).seed == own
    assert resident_megabytes() - before < 200


def test_a_full_queue_is_said_plainly(small_model, house):
    slow = GatedDetector()
    for url in start(Generator(small_model, {"seg": slow}, resolution=64), "--queue-size", "2"):
        client = Client(url, verbose=False)
        jobs = [client.submit(handle_file(house), 64, api_name="/detect")]
        assert slow.entered.wait(30)
        jobs += [client.submit(handle_file(house), 64, api_name="/detect") for _ in range(3)]
        refused = next(as_completed([job.future for job in jobs[1:]], timeout=30))
        assert "full" in str(refused.exception()).lower()
        slow.gate.set()
        assert all(job.result(timeout=60) for job in jobs if job.future is not refused)
