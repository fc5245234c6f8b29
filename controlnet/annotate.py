"""The hints of a folder of pictures and, if wanted, the list that training reads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from annotator.util import MAX_PIXELS, resize_image
from controlnet.conditions import Condition
from controlnet.listing import list_pictures, mark_results, result_names
from controlnet.outputs import check_outputs
from controlnet.pictures import read_picture
from ldm.atomic import atomic_write


@dataclass
class FolderReport:
    """What became of the pictures of a folder; ``failed`` holds (file, reason) pairs."""

    annotated: int = 0
    skipped: int = 0
    failed: list[tuple[Path, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Annotation:
    """One picture and the files that are made of it. ``resized`` is None where the picture keeps its size.

    ``hints`` are by the folder that the condition names; the first is what training reads.
    """

    picture: Path
    hints: Mapping[str, Path]
    resized: Path | None

    @property
    def source(self) -> Path:
        """What training reads as the hint."""
        return next(iter(self.hints.values()))

    @property
    def outputs(self) -> list[Path]:
        return [*self.hints.values(), *([self.resized] if self.resized else [])]

    def is_done(self) -> bool:
        return all(path.exists() for path in self.outputs)


def annotate_folder(
    folder: str | Path,
    out: str | Path,
    condition: Condition,
    *,
    options: Mapping[str, float] | None = None,
    batch_size: int = 4,
    resolution: int | None = None,
    prompts: bool = False,
    progress: bool = True,
) -> FolderReport:
    """Detect the hint of every picture of a folder and its subfolders.

    For ``folder/a/b.jpg`` it writes ``out/hints/a/b.png``, RGB, what the network sees; for segmentation
    ``out/colors/a/b.png`` (RGB, the palette's colours) and ``out/labels/a/b.png`` (one channel, class
    indices). Pictures whose files are all there are skipped, and every file appears whole or not at all, so
    that a run may be stopped and started again. Pictures of one
    folder that differ only in their suffix keep it: ``b.jpg.png``.

    Args:
        folder: its pictures are those that ``list_pictures`` finds.
        out: may be or lie in ``folder``; its own pictures are not annotated, nor what earlier runs wrote.
        condition: what to detect; its detector is loaded here if it is not yet.
        options: of the condition.
        batch_size: pictures of one size that go through the network together.
        resolution: resize first, the short side to this and both to multiples of 64, as ``resize_image``
            does; the resized pictures are written to ``out/pictures``. None keeps each picture's size.
        prompts: also write ``out/prompt.json`` over all pictures that are done, see ``prompt_of``.
        progress: show a bar.

    Returns:
        Counts, and the pictures that could not be read or segmented.

    Raises:
        ValueError: no such folder, no picture in it, two pictures whose maps would have one name, a map that
            would be written over a picture, a batch size below 1, an option that
            the condition refuses, or whatever its detector raises when it is loaded.
    """
    folder, out = Path(folder), Path(out)
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}.")
    jobs = find_jobs(folder, out, condition.folders, resized=resolution is not None)
    checked = condition.checked_options(options or {})
    condition.load()
    todo = [job for job in jobs if not job.is_done()]
    report = FolderReport(skipped=len(jobs) - len(todo))
    for kind in (*condition.folders, *(["pictures"] if resolution is not None else [])):
        mark_results(out / kind)
    with tqdm(total=len(todo), unit="picture", disable=not progress) as bar:
        for batch in _batches(todo, batch_size, resolution, report, bar):
            _annotate(batch, condition, checked, report)
            bar.update(len(batch))
    if prompts:
        report.failed += write_prompts(out, [job for job in jobs if job.is_done()])
    return report


def find_jobs(folder: Path, out: Path, folders: Sequence[str], *, resized: bool = False) -> list[Annotation]:
    """The pictures below ``folder`` in the order of their names, and where their hints go; see
    ``annotate_folder``.
    """
    copies = out / "pictures"
    results = [out / name for name in folders]
    pictures = list_pictures(folder, leave_out=(out, *results, *([copies] if resized else [])))
    jobs = []
    for path, name in zip(pictures, result_names(pictures, folder), strict=True):
        file = name.with_name(f"{name.name}.png")
        hints = {kind: out / kind / file for kind in folders}
        jobs.append(Annotation(path, hints, copies / file if resized else None))
    planned = {str(job.picture): job.outputs for job in jobs}
    check_outputs({**planned, "the list of prompts": [out / "prompt.json"]}, pictures)
    return jobs


def prompt_of(picture: Path) -> str:
    """The prompt of a picture: the text of ``name.txt`` beside it, else the words of its name that have a
    letter.

    Raises:
        ValueError: a text that is not UTF-8.
    """
    text = picture.with_suffix(".txt")
    if text.is_file():
        try:
            return " ".join(text.read_text(encoding="utf-8-sig").split())
        except UnicodeDecodeError as error:
            raise ValueError(f"{text}: not UTF-8 ({error.reason} at byte {error.start}).") from None
    words = picture.stem.replace("_", " ").replace("-", " ").split()
    return " ".join(word for word in words if any(character.isalpha() for character in word))


def write_prompts(out: Path, jobs: list[Annotation]) -> list[tuple[Path, str]]:
    """Write ``out/prompt.json`` as the training script reads it: source (hint), target (picture) and
    prompt.

    All paths are relative to ``out``. The target is the resized picture, or else the original, where it lies.

    Returns:
        The pictures without a line, because their prompt or their name is not UTF-8, each with the reason.
    """
    lines, failed = [], []
    for job in jobs:
        target = job.resized or job.picture
        paths = {"source": job.source, "target": target}
        line = {name: Path(os.path.relpath(path, out)).as_posix() for name, path in paths.items()}
        try:
            line["prompt"] = prompt_of(job.picture)
            lines.append(json.dumps(line, ensure_ascii=False).encode())
        except ValueError as error:
            failed.append((job.picture, f"has no line in prompt.json ({error})"))
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / "prompt.json") as partial:
        partial.write_bytes(b"".join(line + b"\n" for line in lines))
    return failed


def _batches(
    jobs: list[Annotation], batch_size: int, resolution: int | None, report: FolderReport, bar: tqdm
) -> Iterator[list[tuple[Annotation, np.ndarray]]]:
    """Read pictures and yield them in batches of one size; at most ``MAX_PIXELS`` pixels wait for their
    batch.
    """
    waiting: dict[tuple[int, ...], list[tuple[Annotation, np.ndarray]]] = {}
    for job in jobs:
        try:
            picture = read_picture(job.picture)
            if resolution is not None:
                picture = resize_image(picture, resolution)
        except ValueError as error:
            report.failed.append((job.picture, getattr(error, "reason", str(error))))
            bar.update()
            continue
        batch = waiting.setdefault(picture.shape, [])
        batch.append((job, picture))
        if len(batch) == batch_size:
            yield waiting.pop(picture.shape)
        while sum(len(batch) * shape[0] * shape[1] for shape, batch in waiting.items()) > MAX_PIXELS:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


def _annotate(
    batch: list[tuple[Annotation, np.ndarray]],
    condition: Condition,
    options: Mapping[str, float],
    report: FolderReport,
) -> None:
    """Detect and write one batch; if it fails, one by one, so that a single odd picture stops no other."""
    try:
        results = condition.detect_all([picture for _, picture in batch], **options)
    except (ValueError, RuntimeError) as error:
        if len(batch) == 1:
            report.failed.append(
                (batch[0][0].picture, f"cannot be annotated ({' '.join(str(error).split())})")
            )
        else:
            for single in batch:
                _annotate([single], condition, options, report)
        return
    for (job, picture), hint in zip(batch, results, strict=True):
        if job.resized is not None:
            _write_png(job.resized, picture)
        for kind, pixels in condition.files(hint).items():
            _write_png(job.hints[kind], pixels)
        report.annotated += 1


def _write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        Image.fromarray(pixels).save(partial, format="PNG")
