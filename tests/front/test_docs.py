"""What docs/page.md shows is what works: its commands are understood, its Python runs."""

from __future__ import annotations

import re
import shlex

import numpy as np
import pytest
from front.conftest import ROOT
from front.small_page import ColorDetector

from controlnet.commands import generate as tool_generate
from controlnet.generation.generator import Generator
from controlnet.generation.png import read_request
from controlnet.page import app

TEXT = (ROOT / "docs" / "page.md").read_text()
COMMANDS = re.findall(r"^python (gradio_seg2image|tool_generate)\.py([^#\n]*)", TEXT, re.MULTILINE)
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize(("program", "arguments"), COMMANDS)
def test_commands_are_understood(program, arguments):
    parse = {"gradio_seg2image": app.parse_arguments, "tool_generate": tool_generate.parse_arguments}
    assert parse[program](shlex.split(arguments))


def test_the_api_call_runs(server, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    (snippet,) = (text for text in SNIPPETS if "gradio_client" in text)
    exec(compile(snippet.replace("http://127.0.0.1:7860", server), "docs/page.md", "exec"), {})
    assert capsys.readouterr().out.strip().count(".png") == 2


def test_the_python_example_runs(small_model, capsys, monkeypatch, tmp_path):
    (snippet,) = (text for text in SNIPPETS if "load_generator" in text)
    small = Generator(small_model, {"seg": ColorDetector()}, resolution=64)
    monkeypatch.setattr("controlnet.generation.models.find_model", lambda name: name)
    monkeypatch.setattr("controlnet.generation.loading.load_generator", lambda files: small)
    monkeypatch.chdir(tmp_path)
    small_request = snippet.replace("seed=1)", "seed=1, ddim_steps=1)")
    small_request = small_request.replace("examples/", f"{ROOT}/examples/")
    exec(compile(small_request, "docs/page.md", "exec"), {})
    assert read_request(tmp_path / "lake.png").seed == 1
    assert np.isfinite(float(capsys.readouterr().out.split()[-1]))
