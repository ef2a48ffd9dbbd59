"""Draw docs/images/packages.svg, the imports between packages: `make graph`.

Transitive arrows are omitted. Fails where imports form a circle.
"""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

PROJECT = Path(__file__).resolve().parent.parent
ROOTS = ("flows", "tasks", "vae")
STAGES = ("ingest", "validate", "preflight", "train", "monitor", "evaluate")
PICTURE = PROJECT / "docs" / "images" / "packages.svg"
COLOURS = {"flows": "#d9822b", "tasks": "#3c8d5a", "vae": "#2f6db3"}

Graph = dict[str, set[str]]


def package_of(module: str) -> str | None:
    """vae.losses.elbo → vae.losses. The six stages are one package; a module beside the packages stands alone."""
    parts = module.split(".")
    if parts[0] not in ROOTS:
        return None
    if parts[0] == "flows":
        return "flows"
    if len(parts) == 1 or (PROJECT / parts[0] / parts[1]).is_dir():
        return ".".join(parts[:2]) if len(parts) > 1 else None
    if parts[0] == "tasks" and parts[1] in STAGES:
        return "tasks: the six stages"
    return ".".join(parts[:2]) if (PROJECT / parts[0] / f"{parts[1]}.py").exists() else None


def imports() -> Graph:
    """Package → the packages that its modules import."""
    graph: Graph = {}
    for root in ROOTS:
        for path in sorted((PROJECT / root).rglob("*.py")):
            module = ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")
            if (package := package_of(module)) is None:
                continue
            found = graph.setdefault(package, set())
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names: list[str] = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                found |= {other for name in names if (other := package_of(name)) not in (None, package)}
    return graph


def reduced(graph: Graph) -> Graph:
    """Transitive reduction. Raises: graphlib.CycleError: the imports form a circle."""
    reached: Graph = {}
    for package in TopologicalSorter(graph).static_order():
        direct = graph.get(package, set())
        reached[package] = direct.union(*(reached[other] for other in direct))
    return {
        package: {a for a in direct if not any(a in reached[b] for b in direct if b != a)}
        for package, direct in graph.items()
    }


def layers(graph: Graph) -> list[list[str]]:
    """Packages by level, each above all that it imports."""
    depth: dict[str, int] = {}
    for package in TopologicalSorter(graph).static_order():
        depth[package] = 1 + max((depth[other] for other in graph.get(package, ())), default=-1)
    return [sorted(p for p in depth if depth[p] == level) for level in range(max(depth.values()) + 1)]


def draw(graph: Graph) -> Figure:
    rows = layers(graph)
    figure = Figure(figsize=(9, 0.7 * len(rows)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    place = {
        package: ((index + 1) / (len(row) + 1), level)
        for level, row in enumerate(rows)
        for index, package in enumerate(row)
    }
    boxes = {}
    for package, (x, y) in place.items():
        colour = COLOURS[package.split(".")[0].split(":")[0]]
        style = {"boxstyle": "round,pad=0.4", "fc": "white", "ec": colour, "lw": 1.5}
        boxes[package] = axes.text(x, y, package, ha="center", va="center", fontsize=10, bbox=style, zorder=3)
    figure.draw_without_rendering()  # lays the boxes out, so that arrows can end at them
    for package, others in reduced(graph).items():
        for other in sorted(others):
            arrow = {
                "arrowstyle": "-|>",
                "color": "#7a828c",
                "lw": 0.9,
                "patchB": boxes[other].get_bbox_patch(),
            }
            axes.annotate("", xy=place[other], xytext=place[package], arrowprops=arrow, zorder=1)
    axes.set(xlim=(0, 1), ylim=(-0.5, len(rows) - 0.5))
    return figure


if __name__ == "__main__":
    graph = imports()
    with matplotlib.rc_context({"svg.hashsalt": "packages"}):
        draw(graph).savefig(PICTURE, metadata={"Date": None})
    sys.stdout.write(f"{PICTURE.relative_to(PROJECT)}: {len(graph)} packages, no circle\n")
