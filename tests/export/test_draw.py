"""Pictures: drawn for every model, and with `--draw` beside the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.cli import main
from export.draw import _boxes, _layout, draw
from export.reduce import reduce
from export.tracing import trace
from tests.export.small import CONFIGS, save_run, small_model

PNG = b"\x89PNG"


@pytest.mark.parametrize("name", CONFIGS)
def test_boxes_do_not_lie_upon_each_other(name: str) -> None:
    graph = trace(small_model(CONFIGS[name]), CONFIGS[name].inputs)
    for drawn in (graph, reduce(graph)):
        boxes = list(_layout(_boxes(drawn)).values())
        for index, box in enumerate(boxes):
            for other in boxes[:index]:
                beside = abs(box.x - other.x) >= 2.3
                below = box.top >= other.top + other.height or other.top >= box.top + box.height
                assert beside or below


def test_the_picture_is_the_same_every_time(tmp_path: Path) -> None:
    graph = reduce(trace(small_model(CONFIGS["bilstm"]), CONFIGS["bilstm"].inputs))
    for name in ("a.png", "b.png"):
        draw(tmp_path / name, "bilstm", [("as exported", graph)])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_draw_writes_beside_the_model(tmp_path: Path) -> None:
    save_run(tmp_path / "runs", "lstm")
    arguments = [
        "--model",
        "lstm",
        "--runs",
        str(tmp_path / "runs"),
        "--output",
        str(tmp_path / "models"),
        "--no-speed",
    ]
    assert main([*arguments, "--draw"]) == 0
    assert (tmp_path / "models/lstm.png").read_bytes().startswith(PNG)
