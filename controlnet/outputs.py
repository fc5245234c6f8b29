"""Nothing is overwritten that is still needed: a look at all files that a batch will write, beforehand."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path


def check_outputs(planned: Mapping[str, Sequence[Path]], inputs: Iterable[Path]) -> None:
    """Make sure that all files to be written are different, and that none of them is a file to be read.

    Names that differ only in capitals, or in how an accent is encoded, are one file on many systems, so they
    count as equal. Links to inputs, and in the folders of outputs, are followed.

    Args:
        planned: the name of what makes files, such as a job -> the files.
        inputs: the files that are read.

    Raises:
        ValueError: two files are one, or one would have to be a folder of the other; the text names both.
    """
    folder_of = lru_cache(maxsize=None)(lambda folder: normal_name(str(folder.resolve())))  # files are many

    def key_of(path: Path) -> str:
        return f"{folder_of(path.parent)}{os.sep}{normal_name(path.name)}"

    owners: dict[str, str] = {}
    for path in inputs:
        for place in (path, path.resolve()) if path.is_symlink() else (path,):
            owners[key_of(place)] = f"the input {path}"
    outputs: dict[str, str] = {}
    for name, paths in planned.items():
        for path in paths:
            key, owner = key_of(path), f"{path}, made of {name}"
            if key in owners:
                raise ValueError(
                    f"{owner}, would be the same file as {owners[key]}. Choose other names or folders."
                )
            owners[key] = outputs[key] = owner
    for folder, owner in {key.rpartition(os.sep)[0]: owner for key, owner in outputs.items()}.items():
        above = next(
            (owners[key] for key in (folder, *map(str, Path(folder).parents)) if key in owners), None
        )
        if above is not None:
            raise ValueError(
                f"{owner}, would lie below {above}, which is a file. Choose other names or folders."
            )


def normal_name(name: str) -> str:
    """A name with accents in one encoding and without capitals: equal for names that some systems confuse."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
