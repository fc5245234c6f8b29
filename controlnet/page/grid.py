"""A grid on the page: two settings in several values each, their pictures as they come, and one labelled
sheet.
"""

from __future__ import annotations

import functools
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
from gradio.utils import get_upload_folder
from PIL import Image

from controlnet.generation.grid import AXES, Axis, Cell, Grid, generate_grid, note_of, read_axis
from controlnet.generation.png import save_png
from controlnet.generation.request import Request, RequestError
from controlnet.generation.samplers import SAMPLERS
from controlnet.generation.sheet import MAX_PIXELS, Sheet, compose_sheet
from controlnet.generation.watcher import Cancelled, Step
from controlnet.page import results, view
from controlnet.page.actions import Actions
from controlnet.page.events import (
    INSTANT,
    ON_MODEL,
    QUIET,
    SHOW_RUN,
    Session,
    asked,
    wire_after,
    wire_choice,
    wire_end,
    wire_waiting,
)
from controlnet.page.jobs import Job
from controlnet.page.results import Batch
from controlnet.page.settings import MAX_CELLS
from controlnet.page.uploads import one_line

if TYPE_CHECKING:
    from controlnet.page.layout import Parts

_LIVE = 700_000  # pixels of the sheet that grows: it is sent anew with every picture
_HOW = "prompts one a line; numbers between commas, or 3-6; empty: what is set above"
_CHOICES = [(title, name) for name, title in AXES.items()]


@dataclass(eq=False)
class GridRun(Batch):
    """A grid that is made, or was: what a visitor's session keeps of it."""

    grid: Grid = field(default_factory=lambda: Grid(Axis()))
    requests: list[Request] = field(default_factory=list)
    note: str = ""
    started: float = field(default_factory=time.monotonic)
    folder: Path = field(default_factory=lambda: Path(get_upload_folder()) / secrets.token_hex(16))
    sheet: Sheet | None = None
    """Once it is whole."""

    def add(self, cell: Cell) -> None:
        """Keep a picture, and save it under a name of its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"r{cell.row + 1}c{cell.column + 1}_{results.file_stem(cell.result, 0)}.png"
        save_png(self.folder / name, cell.result.pictures[0], cell.result.metadata(0))
        caption = self.grid.label(cell.row, cell.column)
        if cell.result.scores:
            caption += f" · {view.score_text(cell.result.scores[0])}"
        self.results.append(cell.result)
        self.items.append((str(self.folder / name), caption))

    def compose(self, max_pixels: int = MAX_PIXELS) -> Sheet:
        """What is done so far, as one labelled picture."""
        done = dict(zip(self.grid.places(), (result.pictures[0] for result in self.results), strict=False))
        rows, columns = self.grid.rows.labels, self.grid.columns.labels
        return compose_sheet(done, rows, columns, self.note, max_pixels=max_pixels)

    def live(self) -> str:
        """A small picture of it, as a file."""
        path = self.folder / f"so-far-{len(self.results)}.jpg"
        Image.fromarray(self.compose(_LIVE).picture).save(path, quality=85)
        return str(path)

    def finish(self) -> str:
        """The whole sheet, as a PNG file."""
        self.sheet = self.compose()
        names = [axis.name.replace("ddim_", "") for axis in (self.grid.rows, self.grid.columns)]
        path = self.folder / f"grid_{'_x_'.join(filter(None, names))}.png"
        save_png(path, self.sheet.picture)
        return str(path)


class Grids:
    """The functions behind the grid's components."""

    def __init__(self, actions: Actions):
        self.actions = actions

    def suggest(self, axis: str, prompt: str) -> str:
        """Values to begin with."""
        guidance = self.actions.generator.guidance
        return {
            "prompt": prompt,
            "seed": "1-4",
            "strength": "0.5, 1, 1.5",
            "scale": ", ".join(f"{share * guidance:g}" for share in (0.5, 1, 2)),
            "ddim_steps": "5, 10, 20",
            "sampler": ", ".join(SAMPLERS[name].title for name in ("ddim", "dpmpp_2m_karras", "unipc")),
        }[axis]

    def count(
        self,
        rows: str,
        row_text: str,
        columns: str,
        column_text: str,
        prompt: str,
        resolution: int,
        steps: int,
    ) -> str:
        """How many pictures it will be and how long they take, or what is wrong; as HTML."""
        sky = np.zeros((64, 64), np.uint8)
        try:
            standing_in = Request(None, prompt, hint=sky, image_resolution=resolution, ddim_steps=steps)
            grid, requests = self._planned(standing_in, rows, row_text, columns, column_text)
        except RequestError as error:
            return view.message_html(str(error), "error")
        size = f"{len(grid.rows.values)} by {len(grid.columns.values)}: {view.pictures_text(len(grid))}"
        seconds = self.actions.pace.guess(requests)
        if seconds is None:
            return view.message_html(f"{size}. How long they take is known after the first.")
        return view.message_html(f"{size}, about {max(1, round(seconds))} s.")

    def _planned(
        self, request: Request, rows: str, row_text: str, columns: str, column_text: str
    ) -> tuple[Grid, list[Request]]:
        """The grid and its requests; an axis without values has the one of the request."""
        generator = self.actions.generator
        request = request.with_seed().for_model(generator.resolution, generator.guidance)

        def axis(name: str, text: str) -> Axis:
            return read_axis(name, text) if text.strip() else Axis(name, (getattr(request, name),))

        grid = Grid(axis(rows, row_text), axis(columns, column_text))
        grid.check_count(MAX_CELLS)
        return grid, grid.requests(request)

    def run(
        self, job: Job | None, rows: str, row_text: str, columns: str, column_text: str, *asked: Any
    ) -> Iterator[tuple]:
        """Make the grid; ``asked`` are the values that ``Actions.request`` takes.

        Yields:
            status HTML, gallery, result HTML, sheet, the batch, the chosen result, and the four values of the
            hint.
        """
        job = job or Job()
        self.actions.line.enter(job)
        same = (gr.skip(),) * 9
        yield view.message_html("Working …", "running"), *same
        try:
            request = self.actions.request(*asked)
            grid, requests = self._planned(request, rows, row_text, columns, column_text)
            job.expected = self.actions.pace.guess(requests)
            generator = self.actions.generator
            run = GridRun(
                grid=grid, requests=requests, note=note_of(grid, requests[0].settings(), generator.name)
            )
            yield self._status(run), None, "", gr.update(value=None, visible=True), run, None, *same[5:]
            yield from self._follow(job, run)
        except Cancelled as stopped:
            yield view.message_html(str(stopped)), *same
        except Exception as error:
            yield view.message_html(one_line(error), "error"), *same
        finally:
            self.actions.line.leave(job)

    def _follow(self, job: Job, run: GridRun) -> Iterator[tuple]:
        same = (gr.skip(),) * 9
        generator = self.actions.generator
        work = functools.partial(generate_grid, generator, run.grid, run.requests, measure=True)
        try:
            for kind, value in job.follow(work):
                if kind == "step":
                    yield self._status(run, value[0]), *same
                elif kind == "part":
                    run.add(value)
                    self.actions.pace.learn(value.result)
                    hints = self._hints(run) if len(run.results) == 1 else same[:4]
                    yield self._status(run), list(run.items), "", run.live(), gr.skip(), gr.skip(), *hints
        except Cancelled:
            raise  # the session's own listener keeps what is done
        except Exception as error:
            if not run.results:
                raise
            yield *self.kept(run, f"{one_line(error)} ", "error"), *same[:4]
            return
        yield *self.kept(run, "Done. ", "done"), *same[:4]

    def _hints(self, run: GridRun) -> Sequence[Any]:
        """What was detected for all of them, in the editor."""
        request = run.requests[0]
        if request.hint is not None:
            return (gr.skip(),) * 4
        used = self.actions.generator.condition(request.condition)
        return self.actions.show(used, run.results[0].hint, request.input_image)

    def _status(self, run: GridRun, step: Step | None = None) -> str:
        done, total = len(run.results), len(run.requests)
        left = self.actions.pace.guess(run.requests[done:])
        text = f"Picture {min(done + 1, total)} of {total}" + (f", about {left:.0f} s left" if left else "")
        within = (step.index + 1) / step.total if step else 0.0
        return view.bar_html(text, "Pictures of the grid", round(done + 0.95 * within, 2), total)

    def kept(self, run: GridRun, begin: str, kind: str) -> tuple:
        """The end of a run, whole or not: status, gallery, result HTML, sheet, batch, the first result."""
        done, total = len(run.results), len(run.requests)
        took = f"in {time.monotonic() - run.started:.0f} s"
        how = (
            f"{done} of {total} pictures are kept" if done < total else f"{view.pictures_text(total)} {took}"
        )
        text = f"{begin}{how}. Click one to look at it alone; the sheet of all can be downloaded."
        status = view.message_html(text, kind)
        return status, list(run.items), results_html(run), run.finish(), run, run.results[0]

    def stopped(self, run: Batch | None) -> tuple:
        """After Cancel: what was done of a grid is kept. Nothing changes where none was at work."""
        if not isinstance(run, GridRun) or run.sheet is not None or not run.results:
            return (gr.skip(),) * 6
        return self.kept(run, "Cancelled: ", "note")

    @staticmethod
    def choose(run: Batch | None, event: gr.SelectData) -> tuple[Any, Any]:
        """A click on the sheet: the result there, and which picture of the gallery it is."""
        if not isinstance(run, GridRun) or run.sheet is None or not isinstance(event.index, list | tuple):
            return gr.skip(), gr.skip()
        place = run.sheet.cell_at(*event.index)
        order = {place: number for number, place in enumerate(run.grid.places())}
        if place is None or order[place] >= len(run.results):
            return gr.skip(), gr.skip()
        return run.results[order[place]], gr.update(selected_index=order[place])


def results_html(run: GridRun) -> str:
    """Which picture the detector prefers."""
    scored = [(result.scores[0].agreement, k) for k, result in enumerate(run.results) if result.scores]
    if not scored:
        return ""
    _, best = max(scored)
    return view.message_html(f"The detector finds the hint kept best in: {run.items[best][1]}.")


@dataclass
class GridParts:
    """The components."""

    fold: gr.Accordion
    axes: list[gr.components.Component]
    """Setting and values of the rows, then of the columns."""
    count: gr.HTML
    make: gr.Button


def lay_out_grid() -> GridParts:
    """Two axes, what they come to, and the button; folded."""
    with gr.Accordion("A grid: several prompts, seeds or settings", open=False, elem_id="grid") as fold:
        axes: list[gr.components.Component] = []
        for side, name, text, lines in (("Rows", "prompt", "", 2), ("Columns", "seed", "1-4", 1)):
            with gr.Row():
                axes += [
                    gr.Dropdown(_CHOICES, value=name, label=side, min_width=120, scale=1),
                    gr.Textbox(
                        text, label=f"Values of the {side.lower()}", lines=lines, min_width=180, scale=3,
                        placeholder=_HOW,
                    ),
                ]  # fmt: skip
        count = gr.HTML(elem_id="grid-count")
        make = gr.Button("Make the grid", elem_id="make-grid")
    return GridParts(fold, axes, count, make)


def lay_out_sheet() -> gr.Image:
    """Where the sheet grows; there from the first grid on."""
    return gr.Image(
        label="Grid", show_label=False, format="png", interactive=False, visible=False, elem_id="sheet",
        buttons=["download", "fullscreen"],
    )  # fmt: skip


def wire_grid(parts: Parts, actions: Actions, session: Session) -> Any:
    """Connect the grid's parts; returns the event of the run, which can be cancelled."""
    grids, own, settings = Grids(actions), parts.grid, parts.settings
    counted = [*own.axes, settings["prompt"], settings["image_resolution"], settings["ddim_steps"]]
    changes: list[Any] = [own.fold.expand, *(getattr(part, "change") for part in counted)]  # noqa: B009
    gr.on(changes, grids.count, counted, own.count, trigger_mode="always_last", **INSTANT)
    for at in (0, 2):
        choice: Any = own.axes[at]
        choice.input(grids.suggest, [choice, settings["prompt"]], own.axes[at + 1], **INSTANT)
    begun = own.make.click(
        lambda before: (*actions.begin(before), 0, None),
        session.job,
        [session.job, parts.cancel, parts.status, session.chosen, session.batch],
        **INSTANT,
    )
    begun.then(None, js=SHOW_RUN)
    wire_waiting(parts, actions, session, begun)
    shown = [parts.status, parts.gallery, parts.scores, parts.sheet, session.batch, session.result]
    running = begun.then(
        grids.run,
        [session.job, *own.axes, *asked(parts)],
        [*shown, *parts.hint],
        trigger_mode="multiple",
        **ON_MODEL,
        **QUIET,
    )
    wire_end(parts, actions, session, running)
    wire_after(parts, session, running)
    running.then(grids.count, counted, own.count, **INSTANT)
    clicked = parts.sheet.select(grids.choose, session.batch, [session.result, parts.gallery], **INSTANT)
    wire_choice(parts, session, clicked)
    prompt: Any = settings["prompt"]
    for other in (
        parts.generate.click,
        parts.examples.click,
        prompt.submit,
        parts.desk.new,
        parts.desk.restore,
    ):
        other(lambda: gr.update(value=None, visible=False), None, parts.sheet, **INSTANT)
    return running, lambda cancelled: wire_after(
        parts, session, cancelled.then(grids.stopped, session.batch, shown, **INSTANT)
    )
