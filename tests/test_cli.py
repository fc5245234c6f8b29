"""``controlnet COMMAND``: every command, its help, and the scripts that share its parser."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

import tutorial_train
from controlnet import __version__, cli
from controlnet.commands.train import default_settings
from controlnet.training.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {
    "page": "gradio_seg2image",
    "generate": "tool_generate",
    "annotate": "tool_annotate",
    "train": "tutorial_train",
    "evaluate": "tool_evaluate",
}


def help_of(capsys: pytest.CaptureFixture, main, *arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        main(*arguments)
    assert stop.value.code in (0, None)
    return capsys.readouterr().out


def test_help_lists_the_commands(capsys):
    listed = re.findall(r"^    (\w+)  +\w", help_of(capsys, cli.main, ["--help"]), re.MULTILINE)
    assert listed == list(cli.COMMANDS)
    assert help_of(capsys, cli.main, ["--version"]) == f"controlnet {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["paint"], ["--quick", "generate"]])
def test_without_a_known_command_nothing_runs(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert "usage: controlnet [-h] [--version] COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_help_of_a_command_names_it(name, capsys):
    assert help_of(capsys, cli.main, [name, "--help"]).startswith(f"usage: controlnet {name} ")


@pytest.mark.parametrize(("name", "script"), SCRIPTS.items())
def test_a_script_at_the_root_has_the_parser_of_its_command(name, script, monkeypatch, capsys):
    """Same options and texts; only the name of the program differs, and the description of the tutorial."""
    command = options_of(help_of(capsys, cli.main, [name, "--help"]))
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    text = help_of(capsys, importlib.import_module(script).main)
    assert text.startswith(f"usage: {script}.py ")
    assert options_of(text) == command


def options_of(text: str) -> str:
    """All below the description, with lines broken and the root of the checkout written in one way."""
    return " ".join(text[text.index("options:") :].split()).replace(f"({ROOT}/", "(").replace("(./", "(")


def test_train_has_the_settings_of_the_tutorial():
    def places(settings: Settings) -> dict:
        return {name: str((ROOT / value).resolve()) for name, value in files(settings).items()}

    def files(settings: Settings) -> dict:
        return {
            "model": settings.model,
            "base": settings.base,
            "data": settings.data,
            "output": settings.output,
        }

    ours, tutorials = default_settings(), tutorial_train.settings
    assert places(ours) == places(tutorials)
    assert {**vars(ours), **files(tutorials)} == vars(tutorials)


def test_models_says_what_is_there_and_how_to_get_the_rest(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("ldm.files.ROOT", tmp_path)
    monkeypatch.setenv("CONTROLNET_HOME", str(tmp_path))
    (tmp_path / "annotator/ckpts").mkdir(parents=True)
    for name in ("hed_tiny.safetensors", "mlsd_large_512_fp32.pth"):
        (tmp_path / "annotator/ckpts" / name).touch()
    assert cli.main(["models"]) == 0
    out = capsys.readouterr().out
    assert f"sd15 (missing): {tmp_path}/models/control_sd15_seg.pth" in out
    assert re.search(r"^  canny +control control_sd15_canny +detector ready$", out, re.MULTILINE)
    assert re.search(r"^  depth +control control_sd15_depth +detector dpt_hybrid", out, re.MULTILINE)
    assert re.search(r"^  hed +.* detector ready, with hed_tiny; released: ControlNetHED$", out, re.MULTILINE)
    assert re.search(r"^  hough +.* detector ready$", out, re.MULTILINE)
    assert out.splitlines()[-1].endswith("weights fetch NAME")
