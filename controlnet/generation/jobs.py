"""Requests on disk: which pictures, hints and settings make which results, found out before the work
begins.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from controlnet.conditions import DEFAULT, find_condition
from controlnet.files import open_regular
from controlnet.generation.png import read_metadata, read_request
from controlnet.generation.request import RANGES, Request, RequestError, request_from_settings, short_repr
from controlnet.generation.several import MAX_FURTHER
from controlnet.generation.several_files import files_of, from_settings, located, without_files
from controlnet.lines import read_objects
from controlnet.listing import MANIFEST, list_pictures, result_names
from controlnet.outputs import check_outputs
from controlnet.pictures import read_picture

_PIECE, _PIECES = 2**16, 2**12  # bytes, and how many of a file tell it from others
_LONGEST_NAME = 200  # bytes: file systems allow 255, and endings are added


@dataclass(frozen=True)
class Job:
    """One request on disk.

    ``name`` is the results' path below the output folder, without suffix. ``repeats`` is a PNG of ours that
    carries its request; else ``image`` or ``hint`` and ``settings`` make it. ``problem`` is what is wrong
    with the job itself.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    image: Path | None = None
    hint: Path | None = None
    repeats: Path | None = None
    problem: str = ""

    def request(self) -> tuple[Request, tuple[str, ...]]:
        """Read the files: the request, and what was odd about a hint that was brought.

        Raises:
            ValueError: RequestError, PictureError or another one, with one line.
        """
        if self.problem:
            raise RequestError(self.problem)
        if self.repeats is not None:
            return read_request(self.repeats), ()
        picture = None if self.image is None else read_picture(self.image)
        settings, further, warnings = from_settings(self.settings, Path)
        if self.hint is None:
            return request_from_settings(settings, picture, **further), tuple(warnings)
        condition = find_condition(str(settings.get("condition", DEFAULT)))
        report = condition().read(self.hint)
        request = request_from_settings(settings, picture, report.hint, **further)
        return request, (*report.warnings, *warnings)

    def inputs(self) -> dict[str, Path]:
        """The files that are read, by what they are."""
        files = {"image": self.image, "hint": self.hint, "repeats": self.repeats}
        given = {kind: path for kind, path in files.items() if path is not None}
        return given if self.repeats is not None else given | files_of(self.settings)

    def asked(self) -> dict[str, Any]:
        """What the job depends on, ready for JSON: a finished job whose entry says the same is not done
        again.
        """
        read = {kind: fingerprint(path) for kind, path in self.inputs().items()}
        return {**without_files(self.settings), **read}

    def files(self) -> list[str]:
        """What the job writes, as paths below the output folder: the hints, then the pictures."""
        settings, further = self.settings, self.settings.get("further", ())
        if self.repeats is not None:
            try:
                content = read_metadata(self.repeats)
                settings, further = content["request"], content.get("further", ())
            except (RequestError, OSError):
                settings = {}
        count = settings.get("num_samples", 1)
        low, high = RANGES["num_samples"]
        pictures = int(count) if isinstance(count, int | float) and low <= count <= high else 1
        hints = 1 + min(len(further), MAX_FURTHER) if isinstance(further, list) else 1
        return result_files(self.name, pictures, hints)


def result_files(name: str, count: int, hints: int = 1) -> list[str]:
    """The hints and ``count`` pictures, as paths below the output folder."""
    pictures = [name] if count == 1 else [f"{name}_{index}" for index in range(count)]
    maps = [f"{name}_map{number if number > 1 else ''}.png" for number in range(1, hints + 1)]
    return [*maps, *(f"{picture}.png" for picture in pictures)]


def check_jobs(jobs: Sequence[Job], folder: Path, source: Path, sheets: Iterable[str] = ()) -> None:
    """Make sure that no job writes over an input or over what another job writes. ``sheets`` are further
    files, below the folder.

    Raises:
        ValueError: two files are one; the text names both.
    """
    planned = {job.name: [folder / file for file in job.files()] for job in jobs if not job.problem}
    planned |= {f"the grid {file}": [folder / file] for file in sheets}
    planned["the list of results"] = [folder / MANIFEST]
    read = [path for job in jobs for path in job.inputs().values()]
    check_outputs(planned, [*read, *([] if source.is_dir() else [source])])


def jobs_of_pictures(
    source: Path, settings: Mapping[str, Any], repeat: bool = False, out: Path | None = None
) -> list[Job]:
    """One job for a picture, or one for every picture in a folder and below it, in the order of their names.

    Args:
        source: a file or a folder.
        settings: of every request; ``prompt`` is needed unless ``repeat``.
        repeat: the pictures are results of ours, and their own requests are meant.
        out: the folder of results; pictures in it are no sources.

    Raises:
        ValueError: nothing there, or no picture in it.
    """
    if source.is_dir():
        inside = out is not None and out.resolve() != source.resolve()
        leave_out = [out] if inside and out is not None else ()
        paths, root = list_pictures(source, leave_out, with_results=repeat), source
    elif source.exists():
        paths, root = [source], source.parent
    else:
        raise RequestError(f"{source}: there is no such picture, nor a folder with pictures.")
    if repeat and source.is_dir():
        others = _without_request(paths)
        paths = [path for path in paths if path not in others]
    names = [name.as_posix() for name in result_names(paths, root)]
    if repeat:
        return [Job(name, repeats=path) for name, path in zip(names, paths, strict=True)]
    return [Job(name, settings, image=path) for name, path in zip(names, paths, strict=True)]


def from_themselves(jobs: Sequence[Job]) -> list[Job]:
    """The same jobs of pictures, each of which begins from its own where it names no source."""
    return [
        job if job.image is None else replace(job, settings={"source": str(job.image), **job.settings})
        for job in jobs
    ]


def _without_request(results: Sequence[Path]) -> set[Path]:
    """Of the files that runs wrote, the hints and the sheets of grids: they lie beside the pictures, and
    carry no request.
    """
    there = set(results)
    beside = {r"(.+)_map\d?": ("", "_0"), "(.+)_grid": ("_r1c1",)}
    return {
        path
        for path in results
        for ending, others in beside.items()
        if (match := re.fullmatch(ending, path.stem))
        and {path.with_name(f"{match[1]}{other}.png") for other in others} & there
    }


def jobs_of_lines(path: Path, settings: Mapping[str, Any]) -> list[Job]:
    """One job for every line of a JSON-lines file.

    A line is an object with ``image``, ``hint`` or ``source``, perhaps ``mask`` (paths, relative to the file)
    and ``name``, and settings, which go before those given here; ``region`` and ``further`` are as in
    ``several_files``. A line that is no such object becomes a job with a problem.

    Raises:
        ValueError: the file is none of lines of JSON, or empty.
        OSError: it cannot be opened.
    """
    jobs: dict[str, Job] = {}
    for line in read_objects(path):
        where = f"{path.name}, line {line.number}"
        name = f"{line.number:05d}"
        try:
            if line.problem:
                raise ValueError(line.problem)
            job = _job_of(name, dict(line.content), path.parent, settings)
        except (ValueError, TypeError) as error:
            job = Job(name, problem=f"{where}: {error}")
        if job.name in jobs:
            job = Job(f"{job.name}-{line.number}", problem=f"{where}: the name {job.name} came before")
        jobs[job.name] = job
    if not jobs:
        raise RequestError(f"{path}: there is no line in it; one JSON object a line is wanted.")
    return list(jobs.values())


def _job_of(name: str, content: dict[str, Any], folder: Path, settings: Mapping[str, Any]) -> Job:
    name = _checked_name(content.pop("name", name))
    if "map" in content:  # the name of the hint before there were other conditions
        content["hint"] = content.pop("map")
    named = {kind: content.pop(kind) for kind in ("image", "hint") if content.get(kind)}
    for kind, file in named.items():
        if not isinstance(file, str) or "\0" in file:
            raise ValueError(f"{kind} must be the path of a file, got {short_repr(file)}")
    files = {kind: folder / file for kind, file in named.items()}
    return Job(name, merged_settings(settings, located(content, folder)), **files)


def merged_settings(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a line before those of the command line; options go with the condition they were
    given for.
    """
    default_condition = defaults.get("condition", DEFAULT)
    if own.get("condition", default_condition) != default_condition:
        defaults = {name: value for name, value in defaults.items() if name != "options"}
    return {**defaults, **own}


def _checked_name(name: Any) -> str:
    """A result's name from a stranger's file, in one spelling: it must stay below the output folder."""
    path = PurePosixPath(str(name))
    if (
        not isinstance(name, str)
        or not path.parts
        or path.is_absolute()
        or ".." in path.parts
        or "\\" in name
        or "\0" in name
    ):
        raise ValueError(f"the name {str(name)[:80]!r} is no path below the output folder")
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in path.parts):
        raise ValueError(f"the name {name[:40]!r}… is longer than {_LONGEST_NAME} bytes")
    return str(path)


def fingerprint(path: Path) -> str:
    """The start of a file's SHA-256, or nothing where it cannot be read: reading it again will say why."""
    try:
        digest = hashlib.sha256()
        with open_regular(path) as file:
            while piece := file.read(2**20):
                digest.update(piece)
        return digest.hexdigest()[:16]
    except (OSError, ValueError):
        return ""


def quick_fingerprint(paths: Iterable[Path]) -> str:
    """Tells files of weights apart by their names, sizes and contents, of which at most 256 MiB a file are
    read, evenly: a control that was trained on differs from the one before in the middle of its file.

    Of weights in parts the parts count too.
    """
    digest = hashlib.sha256()
    parts = [
        part
        for path in paths
        for part in (path, *(sorted(path.parent.glob("*.safetensors")) if path.suffix == ".json" else ()))
    ]
    for path in parts:
        with open_regular(path) as file:
            size = path.stat().st_size
            digest.update(json.dumps([path.name, size]).encode())
            for place in range(0, size, max(_PIECE, size // _PIECES)):
                file.seek(place)
                digest.update(file.read(_PIECE))
    return digest.hexdigest()[:16]
