"""Many pictures at once: each is detected and drawn with the page's settings, and a ZIP holds what came of
them.
"""

from __future__ import annotations

import functools
import secrets
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.utils import get_upload_folder

from controlnet.generation.entries import append_entry, carry_out, merge_manifest
from controlnet.generation.generator import Generator
from controlnet.generation.jobs import Job as PictureJob
from controlnet.generation.jobs import quick_fingerprint
from controlnet.generation.request import Request, RequestError, request_from_settings
from controlnet.generation.watcher import Cancelled, Step
from controlnet.listing import MANIFEST
from controlnet.page import results, view
from controlnet.page.actions import Actions
from controlnet.page.events import (
    HOUR,
    INSTANT,
    ON_MODEL,
    QUIET,
    SHOW_RUN,
    Session,
    asked,
    wire_end,
    wire_waiting,
)
from controlnet.page.jobs import Job
from controlnet.page.settings import MAX_BYTES, MAX_FILES
from controlnet.page.uploads import one_line, picture_of
from controlnet.pictures import SUFFIXES

if TYPE_CHECKING:
    from controlnet.page.layout import Parts

LIMITS = (
    f"Up to {MAX_FILES} pictures, {MAX_BYTES // 1_000_000} MB together. "
    "Prompt and settings are those of the page."
)
_TOLD = 6  # failed pictures that the status names


@dataclass(frozen=True)
class UploadedPicture(PictureJob):
    """A picture that a visitor sent: errors name it as the visitor does."""

    def request(self) -> tuple[Request, tuple[str, ...]]:
        """As `Job.request`."""
        return request_from_settings(self.settings, picture_of(str(self.image))), ()


@dataclass(eq=False)
class FolderRun:
    """Pictures that are worked on, or were: what a visitor's session keeps of them."""

    jobs: Sequence[PictureJob] = ()
    entries: list[dict[str, Any]] = field(default_factory=list)
    items: list[tuple[str, str]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    folder: Path = field(default_factory=lambda: Path(get_upload_folder()) / secrets.token_hex(16))
    archive: Path | None = None

    def add(self, entry: dict[str, Any]) -> None:
        """Keep what came of a picture; the files lie in ``results`` already."""
        self.entries.append(entry)
        append_entry(self.folder / "results" / f"{MANIFEST}.part0", entry)
        for file in entry.get("files", ())[1:]:
            self.items.append((str(self.folder / "results" / file), file))

    def finish(self) -> str:
        """The ZIP with the manifest as ``tool_generate.py`` writes it. What the page does not show is gone
        then.
        """
        inside, self.archive = self.folder / "results", self.folder / "results.zip"
        merge_manifest(inside, [entry["name"] for entry in self.entries])
        shown = {path for path, _ in self.items}
        with zipfile.ZipFile(self.archive, "w") as archive:  # PNG files are compressed already
            for path in sorted(inside.rglob("*")):
                if path.is_file():
                    archive.write(path, path.relative_to(inside))
                    if str(path) not in shown:
                        path.unlink()
        return str(self.archive)

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The entries of pictures that could not be used."""
        return [entry for entry in self.entries if "error" in entry]

    def forget(self) -> None:
        """Nothing of it stays on disk."""
        shutil.rmtree(self.folder, ignore_errors=True)


def jobs_of_uploads(paths: Sequence[str], settings: Mapping[str, Any]) -> list[UploadedPicture]:
    """One job for each picture, under its own name; further ones of the same name are numbered.

    Raises:
        RequestError: no pictures, too many, or too large ones together.
    """
    pictures = [Path(path) for path in paths if Path(path).suffix.lower() in SUFFIXES]
    if not pictures:
        raise RequestError("There are no pictures yet: choose some.")
    size = sum(path.stat().st_size for path in pictures if path.is_file())
    if len(pictures) > MAX_FILES or size > MAX_BYTES:
        raise RequestError(f"These are {len(pictures)} pictures of {size / 1e6:.0f} MB. {LIMITS}")
    names: set[str] = set()
    jobs = []
    for path in pictures:
        endings = ("", *(f"-{number}" for number in range(2, len(pictures) + 1)))
        name = next(path.stem + ending for ending in endings if (path.stem + ending).lower() not in names)
        names |= {name.lower(), f"{name}_map".lower()}
        jobs.append(UploadedPicture(name, settings, image=path))
    return jobs


class Folders:
    """The functions behind the components."""

    def __init__(self, actions: Actions):
        self.actions = actions

    def run(self, job: Job | None, files: Sequence[str] | None, *asked: Any) -> Iterator[tuple]:
        """Work on the pictures; ``asked`` are the values that ``Actions.request`` takes.

        Yields:
            status HTML, gallery, result HTML, the button of the ZIP, and what the session keeps.
        """
        job = job or Job()
        self.actions.line.enter(job)
        same = (gr.skip(),) * 4
        yield view.message_html("Working …", "running"), *same
        try:
            condition, _, _, _, _, own_seeds, *values = asked
            settings = self.actions.settings(condition, own_seeds, values)
            run = FolderRun(jobs_of_uploads(files or (), settings))
            job.expected = self._left(run)
            yield self._status(run), None, "", gr.update(visible=False), run
            work = functools.partial(work_on, run, self.actions.generator)
            for kind, value in job.follow(work):
                if kind == "step":
                    yield self._status(run, value[0]), *same
                elif kind == "part":
                    yield self._status(run), list(run.items), *same[1:]
            yield self.kept(run)
        except Cancelled as stopped:
            yield view.message_html(str(stopped)), *same
        except Exception as error:
            yield view.message_html(one_line(error), "error"), *same
        finally:
            self.actions.line.leave(job)

    def _left(self, run: FolderRun) -> float | None:
        """Seconds for what is left, from what is done."""
        done = [entry["seconds"] for entry in run.entries if "error" not in entry]
        return sum(done) / len(done) * (len(run.jobs) - len(run.entries)) if done else None

    def _status(self, run: FolderRun, step: Step | None = None) -> str:
        done, total = len(run.entries), len(run.jobs)
        left = self._left(run)
        text = f"Picture {min(done + 1, total)} of {total}" + (f", about {left:.0f} s left" if left else "")
        within = (step.index + 1) / step.total if step else 0.0
        return view.bar_html(text, "Pictures", round(done + 0.95 * within, 2), total)

    def kept(self, run: FolderRun, cancelled: bool = False) -> tuple:
        """The end, whole or not: as ``run`` yields."""
        good, total = len(run.entries) - len(run.failed), len(run.jobs)
        told = "; ".join(f"{entry['name']}: {entry['error']}" for entry in run.failed[:_TOLD])
        if len(run.failed) > _TOLD:
            told += f"; and {len(run.failed) - _TOLD} more"
        begin = "Cancelled: " if cancelled else ""
        text = f"{begin}{good} of {total} done in {time.monotonic() - run.started:.0f} s."
        status = view.message_html(f"{text} {told}".strip(), "done" if good == total else "note")
        button = gr.update(value=run.finish(), visible=True)
        return status, list(run.items), "", button, run

    def stopped(self, run: FolderRun | None) -> tuple:
        """After Cancel: what was done is kept. Nothing changes where none was at work."""
        if run is None or run.archive is not None or not run.entries:
            return (gr.skip(),) * 5
        return self.kept(run, cancelled=True)


def work_on(
    run: FolderRun, generator: Generator, on_step: Callable, should_stop: Callable[[], bool]
) -> Iterator[dict[str, Any]]:
    """Carry out the jobs, and keep the entry of each; a picture that cannot be used does not end the others.

    Raises:
        Cancelled: ``should_stop`` said so.
    """
    model = {"model": generator.name, "precision": generator.precision}
    if generator.files is not None:
        model["weights"] = quick_fingerprint(generator.files.all_files())
    inside = run.folder / "results"
    inside.mkdir(parents=True, exist_ok=True)
    for job in run.jobs:
        try:
            how = {"measure": True, "on_step": on_step, "should_stop": should_stop}
            entry = carry_out(job, generator, inside, {**job.asked(), **model}, **how)
        except Cancelled:
            raise
        except Exception as error:
            entry = {"name": job.name, "error": one_line(error)}
        run.add(entry)
        yield entry
        if should_stop():
            raise Cancelled("Cancelled.")


@dataclass
class FolderParts:
    """The components."""

    files: gr.File
    whole: gr.UploadButton
    make: gr.Button
    archive: gr.DownloadButton


def lay_out_folder() -> FolderParts:
    """Where pictures are dropped, and the button; folded."""
    with gr.Accordion("Many pictures: a ZIP of results", open=False, elem_id="many-pictures"):
        files = gr.File(
            label="Pictures", file_count="multiple", file_types=["image"], height=140, elem_id="pictures"
        )
        gr.HTML(f"<p>{LIMITS}</p>", elem_id="pictures-limits")
        with gr.Row():
            whole = gr.UploadButton("Choose a folder", file_count="directory", size="md", min_width=120)
            make = gr.Button("Draw them all", size="md", min_width=120, elem_id="make-all")
        archive = gr.DownloadButton("Save the ZIP", visible=False, size="md", elem_id="archive")
    return FolderParts(files, whole, make, archive)


def wire_folder(parts: Parts, actions: Actions, session: Session) -> tuple[Any, Callable]:
    """Connect the parts; returns the event of the run, which can be cancelled, and what is to follow that."""
    folders, own = Folders(actions), parts.folder
    kept = gr.State(None, time_to_live=HOUR, delete_callback=lambda run: run and run.forget())
    own.whole.upload(lambda files: files, own.whole, own.files, **INSTANT)
    begun = own.make.click(
        lambda before: (*actions.begin(before), 0, None, None, *results.buttons(None)),
        session.job,
        [
            session.job, parts.cancel, parts.status, session.chosen, session.batch, session.result,
            parts.use_seed, parts.use_picture, parts.copy_link, parts.departures,
        ],
        **INSTANT,
    )  # fmt: skip
    begun.then(None, js=SHOW_RUN)
    wire_waiting(parts, actions, session, begun)
    shown = [parts.status, parts.gallery, parts.scores, own.archive, kept]
    running = begun.then(
        folders.run,
        [session.job, own.files, *asked(parts)],
        shown,
        trigger_mode="multiple",
        **ON_MODEL,
        **QUIET,
    )
    wire_end(parts, actions, session, running)
    return running, lambda cancelled: cancelled.then(folders.stopped, kept, shown, **INSTANT)
