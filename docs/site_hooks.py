"""What MkDocs asks for while it builds the site: the pages that are not in docs/, and links between all.

The reference has a page for each package with a section for each module, made of the docstrings. Files of the
project that are guides as well become pages. Links to other files, which work where the project is read as
source, lead to the reference or become plain text; a link to what does not exist fails the build.
"""

from __future__ import annotations

import ast
import logging
import os
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

logger = logging.getLogger("mkdocs.hooks")

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("controlnet", "cldm", "ldm", "annotator")
# Command lines, the page and the drawn world are no library: their guides say how they are used.
NO_REFERENCE = tuple(f"controlnet.{name}" for name in ("commands", "page", "storybook", "cli", "__main__"))
GUIDES = {
    "embedded-model.md": Path("models/tiny/README.md"),
    "storybook.md": Path("controlnet/storybook/README.md"),
    "contributing.md": Path("CONTRIBUTING.md"),
    "changelog.md": Path("CHANGELOG.md"),
}
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")
# What the theme's script would load in cases that do not occur here: old browsers, diagrams, GitHub's stars.
FOREIGN = re.compile(rb"https://(?:unpkg\.com|api\.github\.com)/[^\"'`]*")


@cache
def reference() -> dict[str, dict[str, str]]:
    """Of each package the modules with a docstring, and its first sentence."""
    pages: dict[str, dict[str, str]] = {}
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        module = module_name(path.relative_to(ROOT))
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if text and not any(f"{module}.".startswith(f"{name}.") for name in NO_REFERENCE):
            package = module if path.name == "__init__.py" else module.rpartition(".")[0]
            pages.setdefault(package, {})[module] = first_sentence(text)
    return {package: dict(sorted(modules.items())) for package, modules in pages.items()}


def module_name(path: Path) -> str:
    """``ldm/util.py`` -> ``ldm.util``; a package is its folder or its ``__init__.py``."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def first_sentence(docstring: str) -> str:
    """On one line."""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=[.:])\s", paragraph)[0].rstrip(":")


def reference_page(package: str) -> str:
    """Markdown that mkdocstrings fills."""
    return "\n\n".join([f"# {package}", *(f"::: {module}" for module in reference()[package])]) + "\n"


def reference_table() -> str:
    """All modules, with a link to each."""
    rows = ["", "| module | what |", "| --- | --- |"]
    for package, modules in reference().items():
        rows += [f"| [{name}](reference/{package}.md#{name}) | {what} |" for name, what in modules.items()]
    return "\n".join(rows) + "\n"


def on_config(config: Any) -> None:
    """The reference goes into the navigation, before the project's own pages."""
    pages = [{package: f"reference/{package}.md"} for package in reference()]
    config.nav.insert(-1, {"Reference": ["reference.md", *pages]})


def on_files(files: Any, config: Any) -> None:
    """The pages that are not in docs/."""
    contents = {f"reference/{package}.md": reference_page(package) for package in reference()}
    contents |= {page: (ROOT / source).read_text(encoding="utf-8") for page, source in GUIDES.items()}
    for page, content in contents.items():
        files.append(File.generated(config, page, content=content))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links of the source become links of the site."""
    uri = page.file.src_uri
    if page.parent is None:  # alone in its tab: no other page to show at its left
        page.meta["hide"] = ["navigation"]
    if uri.startswith("reference/"):
        return markdown
    folder = GUIDES.get(uri, Path("docs", uri)).parent
    markdown = LINK.sub(lambda link: site_link(link, folder, uri), markdown)
    return markdown + reference_table() if uri == "reference.md" else markdown


def site_link(link: re.Match, folder: Path, page: str) -> str:
    """The link as it is on a page of the site, or its text where the site has nothing to show."""
    text, target, anchor = link[1], link[2], link[3] or ""
    path = Path(os.path.normpath(folder / target))
    if not (ROOT / path).exists():
        logger.warning("%s links to %s, which is not there.", page, target)
    if uri := site_page(path):
        return f"[{text}]({os.path.relpath(uri, Path(page).parent)}{anchor})"
    return text if str(path) in text else f"{text} (`{path}`)"


def site_page(path: Path) -> str | None:
    """Where the site shows a file of the project."""
    if path.parts[0] == "docs":
        return str(path).removeprefix("docs/")
    sources = {source: page for page, source in GUIDES.items()} | {Path("README.md"): "index.md"}
    module = module_name(path)
    pages = (f"reference/{package}.md#{module}" for package, known in reference().items() if module in known)
    return sources.get(path) or next(pages, None)


def on_post_build(config: Any) -> None:
    """The theme's script names no other host; its source maps and its other languages are left out."""
    assets = Path(config.site_dir, "assets")
    shutil.rmtree(assets / "javascripts" / "lunr")
    for path in assets.rglob("*"):
        if path.suffix == ".map":
            path.unlink()
        elif path.suffix == ".js":
            path.write_bytes(FOREIGN.sub(b"data:,", path.read_bytes()))
