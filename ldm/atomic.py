"""Files that are whole or not there: written beside the target, flushed to the disk, renamed over it."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be deleted: that does for a lock
    fcntl = None


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write to; it replaces ``path`` when the block ends, and only if it ends well.

    The temporary file lies in the same folder (so the same file system) and keeps the suffix. After an
    exception it is removed and ``path`` is as it was. After a kill it stays behind, and the next save to the
    same ``path`` removes it: each writer holds a lock on its file, which the system drops when the writer
    dies, so a second writer that is alive is left alone (of two, the later rename wins). So write into the
    file that is there: not with a function that puts another in its place, like safetensors' ``save_file``. A
    symbolic link is replaced, not what it points to.

    Raises:
        OSError: the folder does not exist or cannot be written to, or flushing failed.
    """
    path = Path(path)
    _remove_abandoned(path)
    partial, lock = _create_partial(path)
    try:
        yield partial
        _flush(partial)
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    finally:
        if lock is not None:
            os.close(lock)
    if fcntl:  # elsewhere folders cannot be opened
        _flush(path.parent)


def _create_partial(path: Path) -> tuple[Path, int | None]:
    while True:
        partial = path.with_name(f"{_prefix(path)}{secrets.token_hex(4)}.partial{path.suffix}")
        try:
            # Not tempfile: its files are private (0600), while a saved file has the mode that the umask says.
            file = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        except FileExistsError:
            continue
        if fcntl is None:
            os.close(file)
            return partial, None
        with contextlib.suppress(OSError):  # a file system without locks: the next save cannot lock it either
            fcntl.flock(file, fcntl.LOCK_EX)
        if partial.exists():
            return partial, file
        os.close(file)  # another save took it for abandoned in the moment before it was locked


def _remove_abandoned(path: Path) -> None:
    pattern = re.compile(re.escape(_prefix(path)) + r"[0-9a-f]{8}\.partial" + re.escape(path.suffix))
    for partial in (entry for entry in path.parent.iterdir() if pattern.fullmatch(entry.name)):
        with contextlib.suppress(
            OSError
        ):  # gone by now, another user's, or locked because its writer is alive
            if fcntl is None:
                partial.unlink()
            else:
                with partial.open("r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    partial.unlink()


def _prefix(path: Path) -> str:
    """Hidden, and short enough where the name itself is as long as a file system allows (255 bytes)."""
    return f".{os.fsencode(path.name)[:200].decode('utf-8', 'ignore')}."


def _flush(path: Path) -> None:
    file = os.open(path, os.O_RDONLY if path.is_dir() or fcntl else os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)
