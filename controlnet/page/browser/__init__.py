"""Parts of the page that live in the browser: each a ``NAME.html``, a ``NAME.css`` and a ``NAME.js``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

_HERE = Path(__file__).resolve().parent


def browser_part(name: str, before: Sequence[str] = (), folder: Path = _HERE, **options: Any) -> gr.HTML:
    """The component of three files of a folder, with scripts of this one put before its own.

    ``options`` that are none of ``gr.HTML`` become ``props`` of the script.
    """

    scripts = [*(_HERE / f"{script}.js" for script in before), folder / f"{name}.js"]
    return gr.HTML(
        html_template=(folder / f"{name}.html").read_text(encoding="utf-8"),
        css_template=(folder / f"{name}.css").read_text(encoding="utf-8"),
        js_on_load="".join(script.read_text(encoding="utf-8") for script in scripts),
        apply_default_css=False,
        **options,
    )
