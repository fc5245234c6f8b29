"""Fetches released weights: from the Hugging Face hub, a mirror of it, or a folder; never a wrong file under
the right name.

A download lies beside its place until size and sha256 are right, and goes on where it broke off.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from tqdm import tqdm

from controlnet.weights.table import Released
from ldm.atomic import atomic_write

try:
    import fcntl
except ImportError:  # Windows, where two processes cannot write to one file anyway
    fcntl = None  # type: ignore[assignment]

_CHUNK = 2**22
_HUB = "https://huggingface.co"
_KEPT = "What came stays; the same command goes on from there."
_SHA256 = re.compile(r"[0-9a-f]{64}")


class FetchError(RuntimeError):
    """A file that was not fetched; the text says why, and what can be done by hand."""


@dataclass(frozen=True)
class Fetched:
    """A file at its place, with the right size and sha256, and how it came there."""

    path: Path
    was_there: bool
    sha256: str
    sum_is_of_hub: bool
    """The sha256 is the hub's own: none is known here."""


def fetch(
    released: Released, root: Path, *, source: str | None = None, force: bool = False, progress: bool = False
) -> Fetched:
    """Bring a released file to its place.

    Args:
        released: the file.
        root: the folder that its place is counted from.
        source: a folder that has the file, or the URL of a mirror of the hub; by default the hub that
            ``HF_ENDPOINT`` names, or huggingface.co.
        force: replace another file at its place.
        progress: show bars.

    Raises:
        FetchError: nothing came, or something else; what was at the place is unchanged.
    """
    target = root / released.place
    folder = _folder_of(source)
    expected: _Expected = _Expected(released.size, released.sha256)
    is_there = target.is_file() and not force
    listed = None
    if folder is None and not (is_there and expected.sha256):  # what is there and known needs no network
        expected = listed = _listed(released, source, target)
    if is_there:
        return _checked_there(released, target, expected, progress)
    target.parent.mkdir(parents=True, exist_ok=True)
    if folder is not None:
        _copy(released, folder, target, expected, progress)
    elif listed is not None:
        _download(released, source, target, listed, progress)
    return Fetched(target, False, expected.sha256 or _sha256(target, progress), released.sha256 is None)


@dataclass(frozen=True)
class _Expected:
    size: int | None
    sha256: str | None

    def fault(self, path: Path, progress: bool) -> str | None:
        """What is wrong with a file, or None; the size first, which costs nothing."""
        found = path.stat().st_size
        if self.size is not None and found != self.size:
            return f"it has {found:,} bytes, not {self.size:,}{_glance(path)}"
        if self.sha256 is not None and (sha256 := _sha256(path, progress)) != self.sha256:
            return f"its sha256 is {sha256}, not {self.sha256}{_glance(path)}"
        return None


def _checked_there(released: Released, target: Path, expected: _Expected, progress: bool) -> Fetched:
    if fault := expected.fault(target, progress):
        raise FetchError(
            f"{target}: there is a file already, but not {released.name}: {fault}. Move it away, or replace "
            "it with --force"
        )
    return Fetched(target, True, expected.sha256 or _sha256(target, progress), released.sha256 is None)


def _folder_of(source: str | None) -> Path | None:
    if source is None or source.startswith(("http://", "https://")):
        return None
    if not Path(source).is_dir():
        raise FetchError(f"{source}: neither a folder nor the URL of a mirror (https://...)")
    return Path(source)


@dataclass(frozen=True)
class _Listed(_Expected):
    """What the hub lists, and where it gives it."""

    url: str = ""


def _listed(released: Released, endpoint: str | None, target: Path) -> _Listed:
    """Size and sha256 as the hub lists them, checked against what is known here."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        url = hf_hub_url(released.repository, released.path, endpoint=endpoint)
        listed = get_hf_file_metadata(url, endpoint=endpoint)
    except Exception as error:  # the client raises its own, httpx's and the system's
        raise FetchError(_failed(released, target, endpoint, error)) from error
    sha256 = listed.etag if listed.etag and _SHA256.fullmatch(listed.etag) else None
    if listed.commit_hash is None:
        reason = "the answer is not that of a Hugging Face hub (a login page, or a proxy's own?)"
        raise FetchError(_failed(released, target, endpoint, reason))
    for what, known, found in (("size", released.size, listed.size), ("sha256", released.sha256, sha256)):
        if known is not None and found is not None and known != found:
            reason = f"it lists another file under this name: its {what} is {found}, not {known}"
            raise FetchError(_failed(released, target, endpoint, reason))
    if released.sha256 is None and sha256 is None:
        reason = "no sha256 of this file is known here, and none is listed there"
        raise FetchError(_failed(released, target, endpoint, reason))
    return _Listed(released.size or listed.size, released.sha256 or sha256, listed.location)


def _download(
    released: Released, endpoint: str | None, target: Path, listed: _Listed, progress: bool
) -> None:
    """Into a file beside the target, named after what is expected: the next call goes on with it."""
    partial = target.with_name(f".{target.name}.{(listed.sha256 or '')[:12]}.fetch")
    _check_room(target, listed, partial)
    with _opened_alone(partial, released) as file:
        try:
            _receive(listed, released, endpoint, file, progress)
        except Exception as error:
            is_another = isinstance(error, OSError) and error.errno is None  # as many bytes as nobody said
            if is_another:
                partial.unlink()
            kept = "" if is_another else f" {_KEPT}"
            raise FetchError(_failed(released, target, endpoint, error) + kept) from error
    if fault := listed.fault(partial, progress):
        partial.unlink()
        raise FetchError(_failed(released, target, endpoint, f"another file came: {fault}"))
    partial.replace(target)


def _receive(
    listed: _Listed, released: Released, endpoint: str | None, file: BinaryIO, progress: bool
) -> None:
    """What is missing of a file, by the hub's client: it tries again where the line breaks."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    headers = build_hf_headers()
    resolved = hf_hub_url(released.repository, released.path, endpoint=endpoint)
    if urlsplit(listed.url).netloc != urlsplit(resolved).netloc:
        headers.pop("authorization", None)  # a signed address of a storage, which must not learn the token
    http_get(
        listed.url,
        file,
        resume_size=file.seek(0, os.SEEK_END),
        headers=headers,
        expected_size=listed.size,
        displayed_filename=Path(released.place).name,
        tqdm_class=None if progress else _SilentBar,
    )


@contextlib.contextmanager
def _opened_alone(path: Path, released: Released) -> Iterator[BinaryIO]:
    """A file to append to, which no other process fetches at the same time."""
    with path.open("ab") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FetchError(
                f"{released.name} is being fetched by another process already: {path}"
            ) from error
        yield file


def _copy(released: Released, folder: Path, target: Path, expected: _Expected, progress: bool) -> None:
    name = released.path.rpartition("/")[2]
    places = [
        folder / released.path,
        folder / released.place,
        folder / name,
        folder / Path(released.place).name,
    ]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FetchError(f"{folder}: there is no {name} in it, neither directly nor at {released.path}")
    if fault := expected.fault(found, progress):
        raise FetchError(f"{found}: this is not {released.name}: {fault}. Nothing was copied")
    if expected.sha256 is None:
        raise FetchError(
            f"{found}: no sha256 of {released.name} is known here to check it by, and a folder lists none; "
            f"copy it to {target} if you trust it"
        )
    _check_room(target, _Expected(found.stat().st_size, None), target)
    with atomic_write(target) as partial:
        shutil.copyfile(found, partial)


def _check_room(target: Path, expected: _Expected, partial: Path) -> None:
    needed = (expected.size or 0) - (partial.stat().st_size if partial.is_file() else 0)
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise FetchError(
            f"{target}: {needed:,} bytes are needed there, and {free:,} are free; nothing was fetched"
        )


def _failed(released: Released, target: Path, endpoint: str | None, reason: object) -> str:
    """What went wrong, and the way by hand."""
    from huggingface_hub import constants, hf_hub_url

    place = endpoint or constants.ENDPOINT
    lines = str(reason).strip().splitlines() or [type(reason).__name__]
    url = hf_hub_url(released.repository, released.path, endpoint=_HUB)
    return (
        f"{released.name} could not be fetched from {place}: {lines[0].rstrip('.')}. By hand: download {url} "
        f"with a browser, save it as {target}, and run the same command again: it checks the file."
    )


def _glance(path: Path) -> str:
    with path.open("rb") as file:
        return (
            " (it is a web page)"
            if file.read(64).lstrip().lower().startswith((b"<!doctype", b"<html"))
            else ""
        )


def _sha256(path: Path, progress: bool) -> str:
    digest = hashlib.sha256()
    size = path.stat().st_size
    label = f"checking {path.name}"
    with tqdm(total=size, unit="B", unit_scale=True, desc=label, disable=not progress, leave=False) as bar:
        for chunk in _chunks(path):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


class _SilentBar(tqdm):
    """Takes the place of the client's bar and shows nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.pop("name", None)
        super().__init__(*args, **{**kwargs, "disable": True})
