"""A picture of a model by blocks, as trained beside as exported (the report's Figures 3 and 7 show the former)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.graph import Graph, Operator

_COLOURS = {
    "input": "#e8e8e8",
    "dense": "#cfe2f3",
    "dense_int8": "#b9ddc9",
    "lstm": "#fce5cd",
    "add": "#fff2cc",
    "multiply": "#fff2cc",
    "concat": "#d9d2e9",
    "output": "#e8e8e8",
}
_WIDTH, _GAP, _LINE, _SPACE = 2.3, 0.3, 0.2, 0.42


@dataclass
class _Box:
    """An operator that joins or multiplies, and the element-by-element ones that follow it alone."""

    kind: str
    lines: list[str]
    inputs: list[str] = field(default_factory=list)
    x: float = 0.0
    top: float = 0.0

    @property
    def middle(self) -> float:
        return self.x + _WIDTH / 2

    @property
    def height(self) -> float:
        return _LINE * (len(self.lines) + 0.7)


def draw(path: Path, title: str, panels: Sequence[tuple[str, Graph]]) -> None:
    """Write a PNG with one panel per (caption, graph), inputs on top.

    Raises OSError when it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawings = [(caption, _layout(_boxes(graph))) for caption, graph in panels]
    widths = [_right(boxes) + _GAP for _, boxes in drawings]
    depth = max(box.top + box.height for _, boxes in drawings for box in boxes.values())
    figure = Figure(figsize=(sum(widths) + 0.6, depth + 1.3), dpi=120)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1, len(drawings), width_ratios=widths, left=0.02, right=0.98, top=0.93, bottom=0.01)
    figure.suptitle(title, fontsize=13, y=0.985)
    for column, (caption, boxes) in enumerate(drawings):
        axes = figure.add_subplot(grid[column])
        axes.set(xlim=(-_GAP, widths[column]), ylim=(depth + 0.1, -0.45))
        axes.set_axis_off()
        axes.set_title(caption, fontsize=10)
        _paint(axes, boxes)
    figure.savefig(path, format="png", metadata={"Software": None})


def _boxes(graph: Graph) -> dict[str, _Box]:
    """Boxes in the order of the graph, inputs of each by name; Sigmoid and TopK close it."""
    home: dict[str, str] = {}
    boxes: dict[str, _Box] = {}
    for name, op in graph.ops.items():
        source = op.inputs[0] if op.inputs else ""
        if _follows(graph, op):
            home[name] = home[source]
            boxes[home[name]].lines.append(_text(name, op, graph))
        else:
            home[name] = name
            inputs = list(dict.fromkeys(home[i] for i in op.inputs))
            boxes[name] = _Box(op.kind, [_text(name, op, graph)], inputs)
    boxes["outputs"] = _Box("output", ["Sigmoid, TopK", "scores, labels"], [home[graph.output]])
    return boxes


def _follows(graph: Graph, op: Operator) -> bool:
    """Whether it belongs to the box of what it reads: element by element, and the only reader."""
    if len(op.inputs) != 1 or op.kind in ("dense", "dense_int8", "lstm", "concat"):
        return False
    source = op.inputs[0]
    return len(graph.readers[source]) == 1 and graph.ops[source].kind != "input"


def _text(name: str, op: Operator, graph: Graph) -> str:
    match op.kind:
        case "input":
            return f"{name}  {op.width:,}"
        case "dense" | "dense_int8":
            label = "Dense" if op.kind == "dense" else "Dense int8"
            return f"{label}  {graph.ops[op.inputs[0]].width:,} → {op.width:,}"
        case "lstm":
            directions = "BiLSTM" if len(op.values["w"]) == 2 else "LSTM"
            steps = "1 step" if op.steps == 1 else f"{op.steps} steps"
            return f"{directions}  {steps} → {op.width:,}"
        case "affine":
            return _affine_text(op)
        case _:
            return _NAMES[op.kind]


def _affine_text(op: Operator) -> str:
    scale, shift = op.values["scale"], op.values["shift"]
    if not shift.any():
        return f"× {scale[0]:g}" if (scale == scale[0]).all() else "× per channel"
    return "+ per channel" if (scale == 1).all() else "BatchNorm"


_NAMES = {
    "normalise": "L2 norm",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "relu": "ReLU",
    "leaky_relu": "LeakyReLU",
    "dropout": "Dropout",
    "add": "+",
    "multiply": "×",
    "concat": "Concat",
    "quantise": "to uint8",
    "to_fp16": "to float16",
    "embeddings": "embeddings",
    "to_fp32": "to float32",
}


def _layout(boxes: dict[str, _Box]) -> dict[str, _Box]:
    """Rows by the longest way from an input; within a row, boxes under the middle of what they read."""
    level: dict[str, int] = {}
    rows: dict[int, list[str]] = defaultdict(list)
    for name, box in boxes.items():
        level[name] = 1 + max((level[i] for i in box.inputs), default=-1)
        rows[level[name]].append(name)
    widest = max(len(row) for row in rows.values())
    top = 0.0
    for depth in sorted(rows):
        _place_row([boxes[name] for name in rows[depth]], boxes, widest)
        for name in rows[depth]:
            boxes[name].top = top
        top += max(boxes[name].height for name in rows[depth]) + _SPACE
    return boxes


def _place_row(row: list[_Box], boxes: dict[str, _Box], widest: int) -> None:
    """Boxes of one row in the order of their wishes, at least one pitch apart, the row centred on its wishes."""
    pitch = _WIDTH + _GAP
    spread = widest / len(row)
    wishes = [
        sum(boxes[i].x for i in box.inputs) / len(box.inputs) if box.inputs else pitch * (spread * (k + 0.5) - 0.5)
        for k, box in enumerate(row)
    ]
    order = sorted(range(len(row)), key=lambda k: wishes[k])
    places: list[float] = []
    for k in order:
        places.append(max(wishes[k], places[-1] + pitch) if places else wishes[k])
    shift = (sum(wishes) - sum(places)) / len(row)
    shift = min(max(shift, -places[0]), pitch * (widest - 1) - places[-1])
    for k, x in zip(order, places, strict=True):
        row[k].x = x + shift


def _right(boxes: dict[str, _Box]) -> float:
    return max(box.x for box in boxes.values()) + _WIDTH


def _paint(axes: Any, boxes: dict[str, _Box]) -> None:
    from matplotlib.patches import FancyBboxPatch

    for box in boxes.values():
        shape = FancyBboxPatch(
            (box.x, box.top), _WIDTH, box.height, boxstyle="round,pad=0.02,rounding_size=0.08",
            facecolor=_COLOURS.get(box.kind, "#f4f4f4"), edgecolor="#555555", linewidth=0.8,
        )  # fmt: skip
        axes.add_patch(shape)
        axes.text(box.middle, box.top + box.height / 2, "\n".join(box.lines), ha="center", va="center", fontsize=8)
        for name in box.inputs:
            _paint_arrow(axes, boxes[name], box, boxes.values())


def _paint_arrow(axes: Any, source: _Box, target: _Box, boxes: Iterable[_Box]) -> None:
    """Straight to the next row; past rows between them through the gap that lies nearest."""
    start, end = source.top + source.height + 0.02, target.top - 0.02
    between = [box for box in boxes if start < box.top and box.top + box.height < end]
    way = [(source.middle, start), (target.middle, end)]
    if between:
        gap = _gap(between, (source.middle + target.middle) / 2)
        way[1:1] = [(gap, min(b.top for b in between)), (gap, max(b.top + b.height for b in between))]
    xs, ys = zip(*way[:-1], strict=True)
    axes.plot(xs, ys, color="#555555", linewidth=0.8)
    arrow = {"arrowstyle": "-|>", "color": "#555555", "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", way[-1], way[-2], arrowprops=arrow)


def _gap(boxes: Sequence[_Box], wish: float) -> float:
    """The free column nearest to `wish`."""
    columns = [wish, *(x for box in boxes for x in (box.x - _GAP / 2, box.x + _WIDTH + _GAP / 2))]
    free = [x for x in columns if not any(box.x < x < box.x + _WIDTH for box in boxes)]
    return min(free, key=lambda x: abs(x - wish))
