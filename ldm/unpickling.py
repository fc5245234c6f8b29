"""Reading pickled checkpoints without running anything that is in them.

A ``.ckpt`` or ``.pth`` file is a pickle, and a pickle may name any importable function and call it. torch's
weights-only unpickler refuses every name that tensors do not need. Stable Diffusion's own checkpoints name a
few more: Lightning's ``ModelCheckpoint`` (a key of its "callbacks"), numpy scalars (its best score), and the
detector's may hold numpy arrays (its "meta"). Nothing of that is a weight, so those names, and no others,
resolve to a stand-in that does nothing.
"""

from __future__ import annotations

import contextlib
import pickletools
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch


class StandIn:
    """What an inert name of a checkpoint becomes: swallows its arguments and its state, keeps and does
    nothing.
    """

    def __new__(cls, *_args: Any, **_kwargs: Any) -> StandIn:
        return super().__new__(cls)

    def __setstate__(self, _state: Any) -> None:
        pass


_NUMPY_TYPES = (
    "Bool",
    "Int8",
    "Int16",
    "Int32",
    "Int64",
    "UInt8",
    "Float16",
    "Float32",
    "Float64",
    "Str",
    "Bytes",
)
INERT_NAMES: frozenset[str] = frozenset(
    {
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "numpy.dtype",
        "numpy.ndarray",
        # numpy 2 renamed numpy.core; files from both sides are about.
        *(
            f"numpy.{core}.multiarray.{name}"
            for core in ("core", "_core")
            for name in ("scalar", "_reconstruct")
        ),
        *(f"numpy.dtypes.{name}DType" for name in _NUMPY_TYPES),
    }
)

# torch keeps one list of allowed names per process, and its context manager takes names off that list at the
# end, whoever else is still reading. So our own readers take turns; with memory mapping a turn lasts
# milliseconds.
_turn = threading.Lock()


def unpickle(path: Path, *, mmap: bool) -> Any:
    """Read a file of ``torch.save``, zip or legacy, with torch's weights-only unpickler and the stand-ins
    above.

    Raises whatever torch raises; :func:`refused_names` then says which names a file was refused for.
    """
    with _turn, torch.serialization.safe_globals([(StandIn, name) for name in INERT_NAMES]):
        if mmap:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with path.open("rb") as file:  # a path that ends in .safetensors would not be read as a pickle
            return torch.load(file, map_location="cpu", weights_only=True)


def refused_names(path: Path) -> list[str]:
    """Names that a pickled checkpoint asks for and that weights never need, for the text of an error.

    Walks through the opcodes and runs nothing; an unreadable file gives what was found before it broke.
    """
    names: list[str] = []
    with contextlib.suppress(Exception):  # zipfile and pickletools raise many kinds on damaged files
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for record in archive.namelist():
                    if record.endswith(".pkl"):
                        names += _names_in(archive.read(record))
        else:
            with path.open("rb") as stream:
                for _ in range(4):  # a legacy file has its objects in the fourth
                    names += _names_in(stream)
    return [name for name in dict.fromkeys(names) if not _is_harmless(name)]


def _names_in(pickled: bytes | IO[bytes]) -> Iterator[str]:
    """Every ``module.name`` that one pickle asks for."""
    strings: list[str] = []
    for opcode, argument, _position in pickletools.genops(pickled):
        if opcode.name in ("GLOBAL", "INST"):
            yield argument.replace(" ", ".", 1).replace("__builtin__.", "builtins.", 1)
        elif opcode.name == "STACK_GLOBAL" and len(strings) > 1:
            yield ".".join(strings[-2:])
        elif isinstance(argument, str):
            strings.append(argument)


def _is_harmless(name: str) -> bool:
    return name in INERT_NAMES or name.startswith(("torch.", "collections.", "_codecs.encode"))
