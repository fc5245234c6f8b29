"""docs/migrate.md: its new lines are understood where its old ones are not, and its links lead somewhere."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest
import pytorch_lightning as pl

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "migrate.md").read_text()
ROWS = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in TEXT.splitlines() if line.startswith("| `")]
CHANGED = [row for row in ROWS if len(row) == 3]


def unknown_keywords(line: str) -> list[str] | None:
    """The keywords of a call of Lightning or gradio that it does not take; None for another line."""
    import gradio as gr

    match = re.search(r"`((pl|gr)\.(\w+)\([^`]*\))`", line)
    if not match:
        return None
    call = ast.parse(match[1]).body[0].value
    taken = inspect.signature(getattr({"pl": pl, "gr": gr}[match[2]], match[3])).parameters
    return [keyword.arg for keyword in call.keywords if keyword.arg not in taken]


@pytest.mark.parametrize(("old", "new"), [row[:2] for row in CHANGED], ids=lambda text: text[:40])
def test_new_lines_are_understood(old: str, new: str) -> None:
    assert not unknown_keywords(new)
    if old.startswith("`pl.Trainer(") and "ddp" not in old:
        assert unknown_keywords(old)
    for line in re.findall(r"`(from [\w.]+ import \w+)`", new):
        exec(line, {})
    for line in re.findall(r"`(from pytorch_lightning[\w.]* import \w+)`", old):
        with pytest.raises(ImportError):
            exec(line, {})


def test_the_example_allows_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    from ldm import util

    monkeypatch.setattr(util, "ALLOWED_TARGETS", ["ldm."])
    (snippet,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(snippet, {})
    node = {"target": "pytorch_lightning.callbacks.ModelCheckpoint", "params": {"save_last": True}}
    assert util.instantiate_from_config(node).save_last


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert len(links) >= 4
    assert not [link for link in links if not (ROOT / "docs" / link).exists()]
