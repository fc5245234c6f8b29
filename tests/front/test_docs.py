"""The README and docs/ show what works: their Python runs, their commands are understood, and some are run.

An example that cannot run here stands below ``<!-- not run: why -->``. Its imports are run all the same, and
its calls must fit the functions that they name.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from front.conftest import ROOT
from front.small_page import draw
from PIL import Image

BLOCK = re.compile(r"(?:^<!-- not run: ([^\n]+) -->\n+)?^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Programs of others: what is said of them is not checked here.
FOREIGN = ("conda", "pip", "cog", "venv")
# Commands that are run for real, and what makes them short. Of two equal options the last one counts.
RUN = {
    "tool_generate.py examples/lake.png results --prompt 'a red house": ["--ddim-steps", "1"],
    "tool_annotate.py photos hints": [],
    "tool_evaluate.py --detector-only": ["--count", "1"],
    "controlnet.training.make_fill50k training/fill50k ": ["--count", "2"],
    "controlnet weights list": [],
    "benchmarks.builders FOLDER": [],
}


class Example(NamedTuple):
    page: str
    line: int
    language: str
    text: str
    not_run: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def examples(*languages: str) -> Iterator[Example]:
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        for found in BLOCK.finditer(text):
            if found[2] in languages:
                line = text.count("\n", 0, found.start(3)) + 1
                yield Example(path.name, line, found[2], found[3], found[1])


def commands() -> list[str]:
    """Each command of the examples, on one line, without comments and variables of the environment."""
    texts = [re.sub(r"\\\n\s*", "", e.text) for e in examples("sh", "bash") if not e.not_run]
    lines = [shlex.split(line, comments=True) for text in texts for line in text.splitlines()]
    plain = [[word for word in words if not re.match("[A-Z_]+=", word)] for words in lines]
    return sorted({part for words in plain if words for part in shlex.join(words).split(" '&&' ")})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what the examples name."""
    for name in ("examples", "models", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("photos", "FOLDER"):
        (tmp_path / name).mkdir()
    (tmp_path / "FOLDER" / "train.py").write_text("from cldm.logger import ImageLogger\n")
    for name in ("photos/a.png", "photo.jpg"):
        Image.fromarray(draw()).save(tmp_path / name)
    shutil.copy(ROOT / "examples" / "lake_map.png", tmp_path / "map.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def embedded() -> Any:
    from controlnet.generation.loading import load_generator
    from controlnet.generation.models import find_model

    return load_generator(find_model("tiny"))


def test_there_are_examples() -> None:
    assert len([example for example in examples("python") if not example.not_run]) >= 7
    assert len(commands()) >= 25


@pytest.mark.parametrize("example", [e for e in examples("python") if not e.not_run], ids=str)
def test_python_runs(
    example: Example, folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldm.util.ALLOWED_TARGETS", ["ldm.", "cldm.", "torch.nn."])
    text = example.text
    if "gradio_client" in text:
        text = text.replace("http://127.0.0.1:7860", request.getfixturevalue("server"))
    if "load_generator" in text:
        generator = request.getfixturevalue("embedded")
        monkeypatch.setattr("controlnet.generation.loading.load_generator", lambda files: generator)
        text = text.replace("seed=1)", "seed=1, ddim_steps=1)")
    names: dict[str, Any] = {}
    exec(compile(text, str(example), "exec"), names)
    if "gallery" in names:
        assert len(names["gallery"]) == 2
    if "result" in names:
        (saved,) = re.findall(r'save_png\("([^"]+)"', text)
        with Image.open(folder / saved) as picture:
            assert picture.size == (256, 256)


@pytest.mark.parametrize("example", [e for e in examples("python") if e.not_run], ids=str)
def test_python_that_is_not_run_fits_what_it_names(example: Example) -> None:
    names: dict[str, Any] = {"torch": torch}
    tree = ast.parse(example.text)
    page = [e for e in examples("python") if e.page == example.page]
    for other in page[: page.index(example) + 1]:  # what an earlier example of the page imports is known
        imports = [
            node for node in ast.parse(other.text).body if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        exec(compile(ast.Module(imports, []), str(other), "exec"), names)
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    known = [call for call in calls if call.func.id in names]
    assert known
    for call in known:
        named = {keyword.arg: None for keyword in call.keywords}
        inspect.signature(names[call.func.id]).bind(*call.args, **named)


class UnderstoodError(Exception):
    """The command line knows all the options."""


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    if any(Path(word).name.partition(".")[0] in FOREIGN for word in words[:3]):
        return
    extra = next((options for start, options in RUN.items() if start in command), None)
    if extra is None:
        parse = argparse.ArgumentParser.parse_args

        def parse_only(*arguments: Any, **keywords: Any) -> None:
            parse(*arguments, **keywords)
            raise UnderstoodError

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
        expected: type[BaseException] = SystemExit if "--help" in words else UnderstoodError
        with pytest.raises(expected) as end:
            run(words)
        assert getattr(end.value, "code", 0) == 0
    else:
        with pytest.raises(SystemExit) as end:
            run([*words, *extra])
            raise SystemExit(0)  # where a script ends without saying so
        assert not end.value.code


def run(words: list[str]) -> None:
    """A command of this project, in this process."""
    script = next((place for place, word in enumerate(words) if word.endswith(".py")), None)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        if script is not None:
            patch.setattr(sys, "argv", words[script:])
            runpy.run_path(str(ROOT / words[script]), run_name="__main__")
        elif words[0] == "controlnet":
            patch.setattr(sys, "argv", words)
            sys.exit(importlib.import_module("controlnet.cli").main())
        else:
            assert words[1] == "-m", f"{words} is no command that this test knows"
            patch.setattr(sys, "argv", words[2:])
            runpy.run_module(words[2], run_name="__main__", alter_sys=False)
