"""Which files of somebody's code find here what they import from the original.

    python -m benchmarks.builders FOLDER

FOLDER is a checkout of code that builds on ControlNet or Stable Diffusion's `ldm`. Each of its Python files
is read, and none is run: what it imports from `ldm`, `cldm`, `annotator`, `share` and `config` is looked up
in ours. A name that we lack, but that their own copy of the module has, is theirs: that part of their copy
has to come along.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = ("ldm", "cldm", "annotator", "share", "config")


@dataclass(frozen=True)
class Findings:
    """What one file imports from the original.

    Attributes:
        path: of the file, relative to the folder.
        found: dotted names that are here.
        theirs: those that only their own copies have.
        missing: those that nobody has.
        fault: why the file could not be read, or "".
    """

    path: Path
    found: list[str] = field(default_factory=list)
    theirs: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    fault: str = ""

    def __str__(self) -> str:
        if self.fault:
            return f"{self.path}: {self.fault}"
        lacking = [f"{name} (their copy has it)" for name in self.theirs] + self.missing
        return f"{self.path}: {len(self.found)} found{', not here: ' if lacking else ''}{', '.join(lacking)}"


def check_folder(folder: Path) -> list[Findings]:
    """The findings of all files below a folder that import something from the original, or cannot be read."""
    findings = [check_file(path, folder) for path in sorted(folder.rglob("*.py"))]
    return [each for each in findings if each.found or each.theirs or each.missing or each.fault]


def check_file(path: Path, folder: Path) -> Findings:
    """Look up what one file imports."""
    result = Findings(path.relative_to(folder))
    try:
        imported = sorted(set(imports_of(ast.parse(path.read_bytes()), path.relative_to(folder))))
    except (SyntaxError, ValueError, RecursionError) as error:
        return Findings(result.path, fault=f"cannot be read as Python: {error}")
    for module, name in imported:
        dotted = f"{module}.{name}" if name else module
        if is_here(module, name):
            result.found.append(dotted)
        else:
            (result.theirs if is_theirs(module, name, folder) else result.missing).append(dotted)
    return result


def imports_of(tree: ast.Module, path: Path) -> Iterator[tuple[str, str]]:
    """The (module, name) that a file takes from the original's packages; the name is "" for a whole
    module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            pairs = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = path.parts[: -node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            pairs = [(module, "" if alias.name == "*" else alias.name) for alias in node.names]
        else:
            continue
        yield from ((module, name) for module, name in pairs if module.partition(".")[0] in PACKAGES)


def is_here(module: str, name: str) -> bool:
    """Whether our package has a module, and the name in it: an attribute or a module of its own."""
    try:
        found = importlib.import_module(module)
        return not name or hasattr(found, name) or bool(importlib.import_module(f"{module}.{name}"))
    except ModuleNotFoundError:
        return False


def is_theirs(module: str, name: str, folder: Path) -> bool:
    """Whether a module of the folder has the name: defined at its top level, or a file of its own."""
    path = folder.joinpath(*module.split("."))
    source = next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
    if not name:
        return source is not None or path.is_dir()
    if (path / name).is_dir() or (path / f"{name}.py").is_file():
        return True
    return source is not None and name in _top_level_names(source)


def _top_level_names(source: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(source.read_bytes()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="checkout of the code to check")
    folder = parser.parse_args(arguments).folder
    if not folder.is_dir():
        parser.error(f"{folder}: there is no such folder")
    findings = check_folder(folder)
    print("\n".join(map(str, findings)))
    whole = sum(not (each.theirs or each.missing or each.fault) for each in findings)
    missing = sorted({name for each in findings for name in each.missing})
    print(f"{len(findings)} files import from the original; {whole} find all of it here.")
    print(f"Nobody has: {', '.join(missing)}" if missing else "No name is missing.")
    return 1 if missing or any(each.fault for each in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
