"""Which model a command line gets, what it is told where there is none, and the page as its command starts
it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import gradio as gr
import httpx
import numpy as np
import pytest
import torch
from front.conftest import ROOT
from front.small_page import ColorDetector, draw, start
from gradio_client import Client, handle_file

from cldm.model import load_model
from controlnet.commands import evaluate as tool_evaluate
from controlnet.commands import generate as tool_generate
from controlnet.conditions import all_conditions
from controlnet.generation import devices, loading
from controlnet.generation.devices import ModelError, find_device
from controlnet.generation.generator import Generator
from controlnet.generation.loading import load_generator
from controlnet.generation.models import default_model, find_model, known_models
from controlnet.generation.png import read_request, save_png
from controlnet.generation.request import Request
from controlnet.page import app


@pytest.fixture
def empty_project(tmp_path, monkeypatch):
    """A project whose folders hold no weights."""
    monkeypatch.setattr("controlnet.generation.models.MODELS", tmp_path / "models")
    monkeypatch.setattr("controlnet.generation.models.CONFIGS", tmp_path / "configs")
    monkeypatch.setattr("ldm.files.ROOT", tmp_path)
    monkeypatch.setenv("CONTROLNET_HOME", str(tmp_path))
    return tmp_path


def put(*paths) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_sd15_is_the_default_once_its_files_are_there(empty_project):
    assert default_model() == "tiny"
    put(empty_project / "models/cldm_v15.yaml", empty_project / "models/control_sd15_seg.pth")
    assert default_model() == "tiny", "the detector is still missing"
    put(empty_project / "annotator/ckpts/upernet_global_small.pth")
    assert default_model() == "sd15"
    put(empty_project / "models/control_sd15_seg.safetensors")
    assert find_model("auto").weights.suffix == ".safetensors"


def test_front_ends_offer_the_models_own_guidance(small_model, tmp_path):
    assert known_models()["sd15"].guidance == 9.0  # the original's
    page = app.build_page(Generator(small_model, {"seg": ColorDetector()}, resolution=64, guidance=2.5))
    sliders = {block.label: block.value for block in page.blocks.values() if isinstance(block, gr.Slider)}
    assert sliders["Guidance Scale"] == 2.5 and sliders["Image Resolution"] == 64
    save_png(tmp_path / "a.png", draw())
    files = known_models()["tiny"]
    for more, expected in (([], files.guidance), (["--scale", "7"], 7.0)):
        options = tool_generate.parse_arguments([str(tmp_path), str(tmp_path), "--prompt", "a house", *more])
        (job,) = tool_generate.jobs_of(options)
        request = job.request()[0].for_model(files.resolution, files.guidance)
        assert (request.scale, request.image_resolution) == (expected, 256)


def test_embedded_weights_may_come_in_parts(empty_project):
    put(empty_project / "models/tiny/control_tiny_seg.safetensors.index.json")
    assert known_models()["tiny"].weights.name == "control_tiny_seg.safetensors.index.json"


def test_the_embedded_model_has_a_second_control_if_its_file_is_there(empty_project):
    assert not known_models()["tiny"].controls
    path = empty_project / "models/tiny/control_tiny_hints.safetensors"
    put(path)
    files = known_models()["tiny"]
    rest = set(all_conditions()) - {"seg"}
    assert files.controls == dict.fromkeys(rest, path) and files.serves_all


def test_missing_files_come_with_the_command(empty_project, capsys):
    with pytest.raises(ModelError, match=r"sd15: there is no .*control_sd15_seg.pth.*weights fetch sd15-seg"):
        find_model("sd15")
    with pytest.raises(
        ModelError, match=r"tiny: .*control_tiny_seg.*upernet_tiny.*make tiny; .*weights fetch sd15-seg"
    ):
        find_model("auto")
    with pytest.raises(SystemExit, match=r"error: Model tiny: there is no .*make tiny$"):
        app.main(["--model", "tiny"])


@pytest.mark.parametrize(
    ("name", "why"),
    [("sd16", "Known names are sd15, tiny"), ("mine.yaml", "needs --weights"), ("../x", "no such file")],
)
def test_unknown_models_are_refused(name, why):
    with pytest.raises(ModelError, match=why):
        find_model(name)


def test_a_detectors_config_without_its_weights_is_refused(capsys):
    with pytest.raises(ModelError, match=r"--detector-config mine\.py needs --detector-weights"):
        find_model("tiny", detector_config="mine.py")
    for more in ([], ["--detector-only"]):
        assert tool_evaluate.main(["--detector-config", "mine.py", *more]) == 1
        assert "needs --detector-weights" in capsys.readouterr().err


def test_devices_and_precisions_are_checked(model_files):
    files = find_model(str(model_files.config), str(model_files.weights), str(model_files.weights))
    assert (files.name, files.resolution) == ("small", 64)
    with pytest.raises(ModelError, match="--precision fp8"):
        load_generator(files, "cpu", "fp8")
    for device in ("quantum", "cuda:99"):
        with pytest.raises(ModelError, match=f"--device {device}"):
            find_device(device)
    assert load_generator(files, "cpu", "bf16").model.control_model.time_embed[0].weight.dtype.itemsize == 2


def test_compiling_needs_a_compiler(monkeypatch, model_files):
    monkeypatch.setattr(devices.shutil, "which", lambda name: None)
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    files = find_model(str(model_files.config), str(model_files.weights), str(model_files.weights))
    with pytest.raises(ModelError, match=r"--compile needs a C\+\+ compiler .*; leave --compile out"):
        load_generator(files, "cpu", compiles=True)
    with pytest.raises(ModelError, match="--compile needs triton"):
        devices.check_compiler(torch.device("cuda"))


def test_unet_control_and_decoder_are_compiled_for_fixed_shapes(monkeypatch, model_files):
    compiled = []
    monkeypatch.setattr(devices.shutil, "which", lambda name: name)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: compiled.append((self, how)))
    files = find_model(str(model_files.config), str(model_files.weights), str(model_files.weights))
    model = load_generator(files, "cpu", compiles=True).model
    assert [module for module, _ in compiled] == [
        model.model.diffusion_model, model.first_stage_model.decoder, model.control_model
    ]  # fmt: skip
    assert all(how == {"dynamic": False} for _, how in compiled)
    assert type(model.control_model.zero_convs[0][0]) is torch.nn.Conv2d, "not packed as well"


def test_cuda_graphs_are_refused_without_a_gpu_and_where_networks_move(model_options, capsys):
    with pytest.raises(SystemExit, match=r"^error: --cuda-graphs needs a GPU, .* on cpu here; leave it out"):
        app.main([*model_options, "--cuda-graphs"])
    with pytest.raises(ModelError, match=r"leave out it or --save-memory\.$"):
        devices.check_graphs(torch.device("cuda"), save_memory=True)
    devices.check_graphs(torch.device("cuda:1"), save_memory=False)


def test_results_of_cuda_graphs_outlive_the_next_run(monkeypatch, model_files):
    asked, results = [], []

    def record(function, **how):
        """As graphs, which share their memory: a run leaves nothing of the results before it."""
        asked.append((function.__self__, how))

        def replay(*inputs, **named):
            while results:
                results.pop().fill_(torch.nan)
            found = function(*inputs, **named)
            results.extend([found] if isinstance(found, torch.Tensor) else found)
            return found

        return replay

    files = find_model(str(model_files.config), str(model_files.weights), str(model_files.weights))
    # Without guidance, PLMS keeps what the UNet gave for the steps after it.
    how = {"ddim_steps": 4, "image_resolution": 64, "sampler": "plms", "scale": 1.0}
    request = Request(draw(), "a house", seed=4, **how)
    detectors = {"seg": ColorDetector()}
    plain = Generator(load_generator(files, "cpu").model, detectors, resolution=64).generate(request)
    model = load_model(files.config, files.weights)
    monkeypatch.setattr(torch, "compile", record)
    loading.prepare(model, torch.device("cuda"), compiles=False, graphs=True)
    assert [module for module, _ in asked] == [
        model.model.diffusion_model, model.first_stage_model.decoder, model.control_model
    ]  # fmt: skip
    assert all(how == {"mode": "reduce-overhead", "dynamic": False} for _, how in asked)
    graphed = Generator(model, detectors, resolution=64).generate(request)
    difference = np.abs(graphed.pictures[0].astype(int) - plain.pictures[0].astype(int))
    assert difference.max() <= 1, "packed weights round otherwise"


def test_the_page_may_ask_for_a_password(small_model):
    for url in start(
        Generator(small_model, {"seg": ColorDetector()}, resolution=64), "--auth", "me:secret:word"
    ):
        assert httpx.get(f"{url}config").status_code == 401
        with httpx.Client() as visitor:
            visitor.post(f"{url}login", data={"username": "me", "password": "secret:word"})
            assert visitor.get(f"{url}config").status_code == 200
    with pytest.raises(SystemExit):
        app.parse_arguments(["--auth", "me"])


def test_the_command_serves_the_page(model_options, tmp_path):
    save_png(tmp_path / "house.png", draw())
    log = (tmp_path / "log").open("w+")
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path / "cache"), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "gradio_seg2image.py", *model_options, "--queue-size", "4"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        url = None
        for _ in range(600):
            time.sleep(0.2)
            found = re.search(r"http://127\.0\.0\.1:\d+", (tmp_path / "log").read_text())
            if found or process.poll() is not None:
                url = found and found.group()
                break
        assert url, (tmp_path / "log").read_text()[-2000:]
        client = Client(url, verbose=False, download_files=tmp_path / "answers")
        settings = {
            "prompt": "a house",
            "ddim_steps": 1,
            "image_resolution": 64,
            "detect_resolution": 64,
            "seed": 1,
        }
        _, picture = client.predict(handle_file(tmp_path / "house.png"), api_name="/process", **settings)
        assert read_request(picture["image"]).seed == 1
        _, classes = client.predict(handle_file(tmp_path / "house.png"), 64, api_name="/detect")
        assert sum(entry["share"] for entry in classes) == pytest.approx(1, abs=1e-2)
    finally:
        process.terminate()
        process.wait(30)
        log.close()
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert np.all([path.suffix == ".png" for path in (tmp_path / "cache").rglob("*") if path.is_file()])
