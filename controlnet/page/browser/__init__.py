"""Parts of the page that live in the browser: each a ``NAME.html``, a ``NAME.css`` and a ``NAME.js``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

_HERE = Path(__file__).resolve().parent


def browser_part(name: str, before: Sequence[str] = (), folder: Path = _HERE, **options: Any) -> gr.HTML:
    """The component of three files of a folder, with the scripts (and styles) ``before`` put before its own;
    those are of the folder as well, or of this one.

    ``options`` that are none of ``gr.HTML`` become ``props`` of the script.
    """
    homes = [folder if (folder / f"{part}.js").exists() else _HERE for part in (*before, name)]
    parts = [home / part for home, part in zip(homes, (*before, name), strict=True)]
    styles = [part.with_suffix(".css") for part in parts]
    return gr.HTML(
        html_template=(folder / f"{name}.html").read_text(encoding="utf-8"),
        css_template="".join(style.read_text(encoding="utf-8") for style in styles if style.exists()),
        js_on_load="".join(part.with_suffix(".js").read_text(encoding="utf-8") for part in parts),
        apply_default_css=False,
        **options,
    )
