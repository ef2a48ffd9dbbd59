"""Draw docs/images/packages.svg, the imports between packages: `make graph`.

Transitive arrows are omitted. Fails where imports form a circle.
"""

import ast
import io
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import matplotlib
from grandalf.graphs import Edge, Vertex
from grandalf.graphs import Graph as Layered
from grandalf.layouts import SugiyamaLayout, VertexViewer
from grandalf.routing import EdgeViewer, route_with_lines
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

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


def draw(graph: Graph) -> Figure:
    """A layered drawing, each package above all that it imports (Sugiyama's layout)."""
    vertices = {package: Vertex(package) for package in graph}
    for package, vertex in vertices.items():
        vertex.view = VertexViewer(w=14 + 7.6 * len(package), h=26)
    edges = [Edge(vertices[a], vertices[b]) for a, others in reduced(graph).items() for b in sorted(others)]
    for edge in edges:
        edge.view = EdgeViewer()
    layout = SugiyamaLayout(Layered(list(vertices.values()), edges).C[0])
    layout.route_edge = route_with_lines
    layout.xspace, layout.yspace = 24, 34
    layout.init_all()
    layout.draw()

    figure = Figure(figsize=(9, 7))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.invert_yaxis()
    for package, vertex in vertices.items():
        (x, y), view = vertex.view.xy, vertex.view
        colour = COLOURS[package.split(".")[0].split(":")[0]]
        corner = (x - view.w / 2, y - view.h / 2)
        axes.add_patch(FancyBboxPatch(corner, view.w, view.h, boxstyle="round,pad=0", fc="white", ec=colour))
        axes.text(x, y, package, ha="center", va="center", fontsize=10)
    for edge in edges:
        points = edge.view._pts  # grandalf offers no other way to read a route
        axes.plot(*zip(*points, strict=True), color="#7a828c", lw=0.9, zorder=0)
        axes.annotate("", points[-1], points[-2], arrowprops={"arrowstyle": "-|>", "color": "#7a828c", "lw": 0.9})
    return figure


def arrows(graph: Graph) -> str:
    """The imports as text: the drawing holds it too, so that a test can compare the two."""
    return "; ".join(f"{package}: {', '.join(sorted(others))}" for package, others in sorted(graph.items()))


def svg(graph: Graph) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "packages", "svg.fonttype": "none"}):
        draw(graph).savefig(buffer, format="svg", metadata={"Date": None, "Description": arrows(graph)})
    return buffer.getvalue()


if __name__ == "__main__":
    graph = imports()
    PICTURE.write_text(svg(graph), encoding="utf-8")
    sys.stdout.write(f"{PICTURE.relative_to(PROJECT)}: {len(graph)} packages, no circle\n")
