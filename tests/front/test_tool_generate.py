"""tool_generate.py: pictures, folders, files of requests; several processes, kills, broken inputs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from front.conftest import ROOT
from front.small_page import draw
from safetensors.torch import load_file

from annotator.ade20k import colorize
from controlnet.commands import generate as tool_generate
from controlnet.commands.conditions import option_flag
from controlnet.generation.jobs import jobs_of_lines
from controlnet.generation.png import read_request, save_png
from controlnet.generation.request import setting_names, setting_type
from controlnet.listing import MANIFEST
from ldm.weights import save_state_dict

FAST = ["--ddim-steps", "1", "--seed", "5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model_options) -> Path:
    """Four pictures, one below another folder, and a broken one."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    for index, name in enumerate(["a", "b", "c", "more/a"]):
        save_png(folder / f"{name}.png", np.roll(draw(), 7 * index, axis=1))
    (folder / "d.jpg").write_bytes(b"\xff\xd8 cut off")
    return folder


@pytest.fixture(scope="module")
def reference(folder, model_options, tmp_path_factory) -> Path:
    """What one process makes of the folder."""
    out = tmp_path_factory.mktemp("reference")
    assert run(folder, out, "--prompt", "a house", *FAST, *model_options) == 1
    return out


def run(*arguments) -> int:
    return tool_generate.main([str(argument) for argument in arguments])


def command(*arguments) -> list[str]:
    return [sys.executable, "tool_generate.py", *map(str, arguments)]


def manifest(out: Path) -> dict[str, dict]:
    return {entry["name"]: entry for entry in map(json.loads, (out / MANIFEST).read_text().splitlines())}


def pictures(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*.png"))}


def timeless(out: Path) -> list[dict]:
    return [{**entry, "seconds": None} for entry in manifest(out).values()]


def test_a_folder_with_a_broken_picture(reference, capsys):
    entries = manifest(reference)
    assert list(entries) == ["a", "b", "c", "d", "more/a"]
    assert "damaged" in entries["d"]["error"]
    assert list(pictures(reference)) == [
        *("a.png", "a_map.png", "b.png", "b_map.png", "c.png", "c_map.png", "more/a.png", "more/a_map.png"),
    ]
    entry = entries["more/a"]
    assert entry["files"] == ["more/a_map.png", "more/a.png"]
    assert (entry["seeds"], entry["model"], entry["precision"]) == ([5], "small", "fp32")
    assert 0 <= entry["scores"][0]["value"] <= 1 and entry["seconds"] > 0
    assert read_request(reference / "a.png").prompt == "a house"


def test_what_is_done_is_skipped_and_what_changed_is_not(folder, reference, model_options):
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("*.png")}
    (reference / "b.png").unlink()
    assert run(folder, reference, "--prompt", "a house", *FAST, *model_options) == 1
    changed = {path.name for path in before if path.stat().st_mtime_ns != before[path]}
    assert changed == {"b.png", "b_map.png"}


def test_another_precision_is_another_picture(folder, reference, model_options, tmp_path):
    """What ``auto`` takes is noted by its name: another machine's may be another."""
    out = Path(shutil.copytree(reference, tmp_path / "out"))
    assert (
        run(folder / "a.png", out, "--prompt", "a house", *FAST, *model_options, "--precision", "auto") == 0
    )
    assert pictures(out) == pictures(reference), "auto is fp32 here, so nothing was done again"
    assert (
        run(folder / "a.png", out, "--prompt", "a house", *FAST, *model_options, "--precision", "bf16") == 0
    )
    assert manifest(out)["a"]["precision"] == "bf16" and manifest(out)["b"]["precision"] == "fp32"
    assert pictures(out)["a.png"] != pictures(reference)["a.png"]


def test_other_weights_of_the_same_name_and_size_are_another_model(
    folder, model_files, model_options, tmp_path
):
    """Training changes the control alone, whose weights lie in the middle of the file."""
    weights = Path(shutil.copy(model_files.weights, tmp_path / "small.safetensors"))
    options = [str(weights) if option == str(model_files.weights) else option for option in model_options]
    asked = (folder / "a.png", tmp_path / "out", "--prompt", "a house", *FAST, *options)
    assert run(*asked) == 0
    before = pictures(tmp_path / "out")
    state = load_file(weights)
    name = "control_model.middle_block_out.0.bias"
    save_state_dict({**state, name: state[name] + 1}, weights)
    assert weights.stat().st_size == model_files.weights.stat().st_size
    assert run(*asked) == 0
    assert pictures(tmp_path / "out")["a.png"] != before["a.png"]


def test_two_processes_give_the_files_of_one(folder, reference, model_options, tmp_path):
    arguments = command(folder, tmp_path, "--prompt", "a house", *FAST, *model_options, "--devices", "2")
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 1, done.stderr
    assert "failed: d: " in done.stderr and "4 of 5 done" in done.stdout
    assert re.search(r"At most \d\.\d\d GiB of memory", done.stdout)
    assert pictures(tmp_path) == pictures(reference)
    assert timeless(tmp_path) == timeless(reference)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".png") == [MANIFEST, "more"]


def test_a_killed_run_is_completed_by_the_next(folder, reference, model_options, tmp_path):
    arguments = command(folder, tmp_path, "--prompt", "a house", *FAST, *model_options)
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not any(tmp_path.glob("*.png")) and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / MANIFEST).exists()
    with (tmp_path / f"{MANIFEST}.part0").open("a") as part:
        part.write('{"name": "c", "fil')  # a line that the kill cut off
    assert run(folder, tmp_path, "--prompt", "a house", *FAST, *model_options) == 1
    assert pictures(tmp_path) == pictures(reference)
    assert timeless(tmp_path) == timeless(reference)


def test_a_file_of_requests(tmp_path, model_options, house_map):
    save_png(tmp_path / "house.png", draw())
    save_png(tmp_path / "map.png", colorize(house_map))
    lines = [
        {"image": "house.png", "prompt": "a house", "seed": 1, "num_samples": 2, "name": "two"},
        {"map": "map.png", "prompt": "a map"},
        {"image": "gone.png", "prompt": "nothing"},
        {"image": "house.png", "prompt": "a house", "scale": 99},
        {"image": "house.png", "prompt": "a house", "name": "../../escape"},
        {"image": "house.png", "prompt": "a house", "name": "two"},
    ]
    (tmp_path / "requests.jsonl").write_text("\n".join([*map(json.dumps, lines), "no json"]))
    out = tmp_path / "out"
    assert run(tmp_path / "requests.jsonl", out, *FAST, "--no-measure", *model_options) == 1
    entries = manifest(out)
    assert entries["two"]["files"] == ["two_map.png", "two_0.png", "two_1.png"]
    assert entries["two"]["request"]["seed"] == 1 and entries["00002"]["request"]["seed"] == 5
    errors = {name: entry["error"] for name, entry in entries.items() if "error" in entry}
    for name, why in {
        "00003": "no such file",
        "00004": "scale",
        "00005": "escape",
        "two-6": "came before",
    }.items():
        assert why in errors.pop(name)
    assert "requests.jsonl, line 7" in errors.pop("00007") and not errors
    assert not (tmp_path.parent / "escape.png").exists()


def test_results_of_an_earlier_run_are_no_inputs_of_the_next(tmp_path, model_options, capsys):
    photos, options = tmp_path / "photos", ["--prompt", "a house", "--no-measure", *FAST, *model_options]
    photos.mkdir()
    save_png(photos / "a.png", draw())
    assert run(photos, photos / "first", *options) == 0
    assert run(photos, photos / "second", *options) == 0
    assert list(manifest(photos / "second")) == ["a"]
    again = tmp_path / "again"
    assert run(photos / "first", again, "--from-image", "--no-measure", *model_options) == 0
    assert list(manifest(again)) == ["a"], "the map beside it is no result"
    assert pictures(again) == pictures(photos / "first")


def test_results_repeat_from_themselves(reference, tmp_path, model_options):
    again = tmp_path / "again"
    assert run(reference / "a.png", again, "--from-image", "--no-measure", *model_options) == 0
    assert (again / "a.png").read_bytes() == (reference / "a.png").read_bytes()


def test_missing_weights_say_how_to_get_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ldm.files.ROOT", tmp_path)
    monkeypatch.setenv("CONTROLNET_HOME", str(tmp_path))
    assert run(tmp_path, tmp_path / "out", "--model", "tiny", "--prompt", "x") == 2
    message = capsys.readouterr().err
    assert "control_tiny_seg.safetensors" in message and "make tiny" in message
    assert run(tmp_path, tmp_path / "out", "--model", "unknown", "--prompt", "x") == 2
    assert "Known names are sd15, tiny" in capsys.readouterr().err


def test_names_of_lines_stay_below_the_folder(tmp_path):
    names = ["/etc/x", "a/../../x", "..", "a\\b", 7, ""]
    (tmp_path / "r.jsonl").write_text("\n".join(json.dumps({"prompt": "", "name": name}) for name in names))
    assert all(job.problem for job in jobs_of_lines(tmp_path / "r.jsonl", {}))


def test_help_says_what_every_setting_means_and_its_default(capsys):
    with pytest.raises(SystemExit):
        tool_generate.parse_arguments(["--help"])
    text = re.sub(r"\s+", " ", capsys.readouterr().out.partition("\nsettings:")[2])
    for name in setting_names():
        if setting_type(name) is not dict:
            assert re.search(rf"{option_flag(name)} ({{\S+}} |[A-Z]+ )?(?!--)[a-z-]\S* \S+", text), name
    assert "steps (default: 20)" in text and "as the model has it" in text
