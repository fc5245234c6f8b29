"""benchmarks/builders.py: what it says of a folder of somebody's code, and that it runs none of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.builders import check_folder, main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {
        "train.py": "from share import *\nimport torch, config\nfrom cldm.model import create_model\n1 / 0\n",
        "cldm/cldm.py": "from ldm.util import exists\nfrom .parts import Part\nfrom cldm.lost import Lost\n",
        "cldm/parts.py": "import numpy as np\nclass Part: pass\n",
        "ldm/util.py": "from math import pi as circle\nSIZE = 3\ndef own(): pass\n",
        "tools/use.py": "def f():\n    import ldm.data\n"
        "    from ldm.util import SIZE, own, circle, default, nothing\n",
        "ldm/data/__init__.py": "",
        "plain.py": "import os\n",
        "old.py": "print 'a house'\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_names_are_found_theirs_or_missing(folder: Path) -> None:
    found = {str(each.path): each for each in check_folder(folder)}
    assert set(found) == {"train.py", "cldm/cldm.py", "tools/use.py", "old.py"}
    assert found["train.py"].found == ["cldm.model.create_model", "config", "share"]
    cldm, use = found["cldm/cldm.py"], found["tools/use.py"]
    assert (cldm.found, cldm.theirs, cldm.missing) == (
        ["ldm.util.exists"],
        ["cldm.parts.Part"],
        ["cldm.lost.Lost"],
    )
    assert use.found == ["ldm.util.default"]
    assert use.theirs == ["ldm.data", "ldm.util.SIZE", "ldm.util.circle", "ldm.util.own"]
    assert use.missing == ["ldm.util.nothing"]
    assert found["old.py"].fault.startswith("cannot be read as Python")


def test_what_is_printed(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "train.py: 3 found" in lines
    assert "cldm/cldm.py: 1 found, not here: cldm.parts.Part (their copy has it), cldm.lost.Lost" in lines
    assert lines[-2:] == [
        "4 files import from the original; 1 find all of it here.",
        "Nobody has: cldm.lost.Lost, ldm.util.nothing",
    ]
    with pytest.raises(SystemExit):
        main([str(folder / "nowhere")])
