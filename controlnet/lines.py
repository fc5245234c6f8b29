"""Files of one JSON object a line, as people and other programs write them."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controlnet.files import open_regular

MOST_BYTES = 16 * 2**20
"""No line may be longer."""


class LinesError(ValueError):
    """A file that is not made of lines of JSON; the text is one line and names it."""


@dataclass(frozen=True)
class Line:
    """One line: the object in it, or what is wrong with it. Lines are counted from 1."""

    number: int
    content: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def read_objects(path: Path) -> Iterator[Line]:
    r"""The lines of a file that are not empty, one after the other.

    A line ends at ``\n`` and nowhere else (JSON may hold U+2028 and the like), and is UTF-8; the file may
    begin with a byte-order mark.

    Raises:
        LinesError: while it is read: no regular file, UTF-16, or one piece of JSON over many lines.
        OSError: the file cannot be opened.
    """
    try:
        file = open_regular(path)
    except ValueError as error:
        raise LinesError(f"{path}: {error}.") from None
    with file:
        start = file.read(4)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise LinesError(f"{path}: this is UTF-16; save it as UTF-8.")
        file.seek(len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0)
        is_first = True
        for number, line in enumerate(iter(lambda: file.readline(MOST_BYTES), b""), start=1):
            if len(line) == MOST_BYTES:
                raise LinesError(f"{path}: line {number} is longer than {MOST_BYTES:,} bytes.")
            if not line.strip():
                continue
            found = _parse(line, number)
            if is_first and line.lstrip()[:1] in b"[{" and found.problem:
                _refuse_one_piece(path, line, is_last=not file.peek(1))
            is_first = False
            yield found


def capped(faults: Sequence[object], most: int = 20) -> list[str]:
    """The first faults as texts, and a last one that counts the others."""
    shown = [str(fault) for fault in faults[:most]]
    return [*shown, f"… and {len(faults) - most} more"] if len(faults) > most else shown


def _parse(line: bytes, number: int) -> Line:
    try:
        content = json.loads(line.decode())
        if not isinstance(content, dict):
            raise ValueError(f"a JSON object is wanted, got {type(content).__name__}")
        if b"\\u" in line:
            json.dumps(content, ensure_ascii=False).encode()
        return Line(number, content)
    except json.JSONDecodeError as error:
        problem = f"not a line of JSON ({error.msg} at character {error.pos + 1})"
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 ({line[error.start]:#x} at byte {error.start + 1})"
    except UnicodeEncodeError:
        problem = r"half a character, such as \ud800, is no text"
    except RecursionError:
        problem = "nested too deeply"
    except ValueError as error:
        problem = str(error)
    return Line(number, problem=problem)


def _refuse_one_piece(path: Path, line: bytes, is_last: bool) -> None:
    """Say so if the file begins with a line that is the start, or all, of an array or an indented object."""
    opening = line.strip()
    if opening in (b"[", b"{") or (opening.startswith(b"[") and (is_last or not opening.endswith(b"]"))):
        kind = "array" if opening.startswith(b"[") else "object over many lines"
        raise LinesError(f"{path}: this is one JSON {kind}; one object a line is wanted.")
