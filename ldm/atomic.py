"""Files that are whole or not there: written beside the target, flushed to the disk, renamed over it."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be deleted: that does for a lock
    fcntl = None


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path to write to; it replaces ``path`` when the block ends, and only if it ends well.

    The temporary file lies in the same folder (so the same file system) and keeps the suffix. After an
    exception it is removed and ``path`` is as it was. After a kill it stays behind, and the next save to the
    same ``path`` removes it: each writer holds a lock on its file, which the system drops when the writer
    dies, so a second writer that is alive is left alone (of two, the later rename wins). The time that this
    takes does not depend on the number of files in the folder.

    So write into the file that is there: not with a function that puts another in its place, like
    safetensors' ``save_file``. A symbolic link is replaced, not what it points to.

    Raises:
        OSError: the folder does not exist or cannot be written to, or flushing failed.
    """
    path = Path(path)
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


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a new folder to write to; it takes the place of ``path`` when the block ends, and only if it ends
    well.

    Raises:
        OSError: as the system says it.
    """
    new, old = (path.with_name(f".{path.name[:100]}.{os.getpid()}.{kind}") for kind in ("new", "old"))
    new.mkdir()
    try:
        yield new
        if path.exists():
            path.replace(old)
        new.replace(path)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _create_partial(path: Path) -> tuple[Path, int | None]:
    """Create and lock the first temporary file that no living writer has.

    They are numbered, so that what a dead writer left is found without a look through the folder: all numbers
    up to the first that is free are tried.
    """
    numbered = (_partial(path, number) for number in itertools.count())
    for partial in numbered:
        _remove_if_abandoned(partial)
        try:
            # Not tempfile: its files are private (0600), while a saved file has the mode that the umask says.
            file = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        except FileExistsError:
            continue
        if fcntl is not None:
            with contextlib.suppress(OSError):  # no locks here: nobody else can lock it either
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_open_as(file, partial):
                os.close(file)  # another save took it for abandoned in the moment before it was locked
                continue
        while _remove_if_abandoned(next(numbered)):
            pass
        if fcntl is None:
            os.close(file)
            return partial, None
        return partial, file
    raise AssertionError("numbers do not end")


def _remove_if_abandoned(partial: Path) -> bool:
    """Whether there was a file without a writer, which is gone now."""
    try:
        if fcntl is None:
            partial.unlink()
            return True
        with partial.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_open_as(file.fileno(), partial):
                return False  # its writer has just put it in its place
            partial.unlink()
            return True
    except OSError:  # not there, another user's, or locked because its writer is alive
        return False


def _is_open_as(file: int, path: Path) -> bool:
    """Whether ``path`` is still the file that was opened."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _partial(path: Path, number: int) -> Path:
    """Hidden, and short enough where the name itself is as long as a file system allows (255 bytes)."""
    start = os.fsencode(path.name)[:200].decode("utf-8", "ignore")
    return path.with_name(f".{start}.{number}.partial{path.suffix}")


def _flush(path: Path) -> None:
    file = os.open(path, os.O_RDONLY if path.is_dir() or fcntl else os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)
