"""The page: a picture becomes a hint, and hint and words become pictures that keep to it."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from controlnet.conditions import DEFAULT, all_conditions, find_condition
from controlnet.files import EXAMPLES
from controlnet.generation.generator import Generator
from controlnet.generation.models import known_models
from controlnet.generation.options import add_model_arguments, errors_exit, generator_from_options
from controlnet.generation.recognised import recognised
from controlnet.page.actions import Actions
from controlnet.page.checks import Page
from controlnet.page.events import HOUR
from controlnet.page.examples import Example, load_examples
from controlnet.page.layout import lay_out
from controlnet.page.visitors import own_server
from controlnet.page.wiring import wire

HERE = Path(__file__).resolve().parent
MAX_UPLOAD = "20mb"
SESSIONS = 200  # that keep their state at a time

THEME = gr.themes.Soft(
    primary_hue="teal",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],  # no font is fetched from anywhere
    font_mono=["ui-monospace", "monospace"],
).set(  # every text has a contrast of 4.5 or more, light and dark
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    block_title_text_color="*primary_800",
    block_label_text_color="*primary_800",
    block_title_background_fill_dark="*primary_800",
    block_label_background_fill_dark="*primary_800",
    checkbox_label_background_fill_selected="*primary_700",
    checkbox_label_background_fill_selected_dark="*primary_700",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_hover_dark="*primary_800",
)


def build_page(
    generator: Generator,
    examples: Sequence[Example] = (),
    condition: str = DEFAULT,
    first: Example | None = None,
) -> Page:
    """Lay out the page over a generator, opened on a condition. Nothing is loaded here.

    Args:
        generator: makes the pictures.
        examples: to be clicked.
        condition: what steers the pictures at first.
        first: what a new visitor finds in the page, ready for Generate.
    """
    opened_on = find_condition(condition)
    title = f"{opened_on.title} to image"
    with Page(title=title, analytics_enabled=False, delete_cache=(HOUR, HOUR)) as page:
        heading = (title, *model_note(generator), files_note(generator))
        parts = lay_out(heading, generator, opened_on, examples, first)
        wire(page, parts, Actions(generator, list(parts.options), examples, parts.panels), opened_on)
    return page


def model_note(generator: Generator) -> tuple[str, str]:
    """Which model serves the page, as HTML, and how to get a larger one, or nothing."""
    name, size = escape(generator.name), f"{generator.resolution} pixels, in {generator.precision}"
    if generator.world is None:
        return f"Model <b>{name}</b>, {size}.", ""
    how = escape(known_models()["sd15"].how_to_get)
    about = escape(generator.world.about)
    return (
        f"Model <b>{name}</b>, a small one for {about}, {size}.",
        f"For Stable Diffusion 1.5, which draws everything, run <code>{how}</code> and start again.",
    )


def files_note(generator: Generator) -> str:
    """What the model's files were recognised as, to be folded out. Visitors see names, not folders."""
    if generator.files is None:
        return ""
    lines = (
        f"<li>{escape(file.use)}: <b>{escape(file.path.name)}</b>: "
        f"{'' if file.fits else 'cannot serve: '}{escape(file.what)}</li>"
        for file in recognised(generator.files)
    )
    return f"<details><summary>Files</summary><ul>{''.join(lines)}</ul></details>"


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The options of the page's command."""
    parser = argparse.ArgumentParser(prog=prog, description="Serve the page.")
    parser.add_argument(
        "--condition", default=DEFAULT, choices=sorted(all_conditions()), help="what the page opens on"
    )
    add_model_arguments(parser)
    add_server_arguments(parser)
    return parser


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Where a page is served, to whom, and how many may wait."""
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 for every one (default: %(default)s)",
    )
    parser.add_argument("--port", type=int, help="(default: the first free one from 7860 on)")
    parser.add_argument(
        "--share", action="store_true", help="also make a public link through gradio's tunnel"
    )
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="ask visitors for this")
    parser.add_argument(
        "--queue-size",
        type=int,
        default=32,
        help="jobs that may wait; more are refused (default: %(default)s)",
    )


def parse_arguments(
    arguments: Sequence[str] | None = None, condition: str = DEFAULT, prog: str | None = None
) -> argparse.Namespace:
    """The options of a command line; ``condition`` is the default of that option."""
    parser = make_parser(prog)
    parser.set_defaults(condition=condition)
    options = parser.parse_args(arguments)
    if options.auth and ":" not in options.auth:
        parser.error("--auth must be USER:PASSWORD")
    return options


def main(
    arguments: Sequence[str] | None = None,
    save_memory: bool = False,
    condition: str = DEFAULT,
    prog: str | None = None,
) -> None:
    """Serve the page until interrupted. It answers at once, and the model is loaded meanwhile; if that fails,
    the page ends as it would have before: it is good for nothing without one.

    Args:
        arguments: of the command line, by default the program's own.
        save_memory, condition: defaults of these options.
        prog: name of the program in its help.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    options = parse_arguments(arguments, condition, prog)
    options.save_memory = options.save_memory or save_memory
    with own_temporary_folder():
        with errors_exit():
            generator = generator_from_options(options, options.condition, at_once=False)
        examples = [known for known in load_examples(EXAMPLES) if known.condition == options.condition]
        page = build_page(generator, examples, options.condition, next(iter(examples), None))
        serve(page, options, prevent_thread_lock=True)
        load_while_serving(page, generator)
        page.block_thread()


def load_while_serving(page: gr.Blocks, generator: Generator) -> None:
    """Load the model on this thread. Where that fails, those who wait are told, and the server ends.

    Raises:
        SystemExit: with the error in one line; or somebody pressed Ctrl+C.
    """
    try:
        with errors_exit():
            generator.arrival.bring()
    except BaseException as error:
        page.close(verbose=False)
        if isinstance(error, KeyboardInterrupt):
            raise SystemExit(128 + signal.SIGINT) from None
        raise


@contextmanager
def own_temporary_folder() -> Iterator[Path]:
    """A folder for uploads and results that only this process and its user can read, gone at the end, also
    where that comes with SIGTERM.

    Gradio's own lies in one place for all programs of a machine, and everyone there can list it. It takes
    another from the environment, when components are made.
    """
    at_term = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    before = os.environ.get("GRADIO_TEMP_DIR")
    if before is not None:
        Path(before).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="controlnet-page-", dir=before) as folder:
        os.environ["GRADIO_TEMP_DIR"] = os.path.realpath(folder)
        try:
            yield Path(folder)
        finally:
            signal.signal(signal.SIGTERM, at_term)
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def serve(page: gr.Blocks, options: argparse.Namespace, **more: Any) -> tuple[Any, str, str | None]:
    """Start the server, with limits on what visitors may send and leave; ``more`` goes to gradio's
    ``launch``.
    """
    page.queue(max_size=options.queue_size, api_open=False)  # nothing that waits in the queue can go round it
    return page.launch(
        server_name=options.host,
        server_port=options.port,
        share=options.share,
        auth=tuple(options.auth.split(":", 1)) if options.auth else None,
        max_file_size=MAX_UPLOAD,
        show_error=False,  # unexpected errors stay in the log
        state_session_capacity=SESSIONS,
        allowed_paths=[str(EXAMPLES)],
        footer_links=["api"],
        app_kwargs=own_server(page),
        theme=THEME,
        css_paths=HERE / "style.css",
        **more,
    )
