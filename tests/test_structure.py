"""Limits on the structure of the code: packages without circles, few modules in each, short functions."""

import ast
import importlib.util
import statistics
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from helpers.project import PROJECT

PACKAGES = ("flows", "tasks", "vae", "benchmarks")
MOST_MODULES, MOST_LINES, MEDIAN_LINES = 12, 80, 10


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (PROJECT / package).rglob("*.py"))


def functions() -> Iterator[tuple[str, int]]:
    """(file:name, lines) of every function and method, its decorators left out."""
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                yield f"{path.relative_to(PROJECT)}:{node.name}", lines


def test_the_packages_import_each_other_without_a_circle() -> None:
    spec = importlib.util.spec_from_file_location("packages", PROJECT / "docs" / "packages.py")
    assert spec and spec.loader
    packages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(packages)
    graph = packages.imports()
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert {"vae.losses", "tasks.tracking", "flows"} <= set(order)
    assert packages.arrows(graph) in packages.PICTURE.read_text(encoding="utf-8"), "run `make graph`"


def test_no_package_has_too_many_modules() -> None:
    folders = {path.parent for path in sources()}
    sizes = {f: sum(path.name != "__init__.py" for path in f.glob("*.py")) for f in folders}
    assert {str(f.relative_to(PROJECT)): n for f, n in sizes.items() if n > MOST_MODULES} == {}


def test_functions_are_short() -> None:
    found = list(functions())
    assert [(name, lines) for name, lines in found if lines > MOST_LINES] == []
    assert statistics.median(lines for _, lines in found) <= MEDIAN_LINES
