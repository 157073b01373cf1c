"""An editor keeps order and readers up to date, and says what lies around a change."""

from __future__ import annotations

from dataclasses import replace

import pytest

from export.editor import Editor
from export.graph import Graph, Operator


@pytest.fixture
def editor() -> Editor:
    """x -> a -> b, and c = a + b."""
    ops = {
        "x": Operator("input", width=2),
        "a": Operator("tanh", ("x",), width=2),
        "b": Operator("relu", ("a",), width=2),
        "c": Operator("add", ("a", "b"), width=2),
    }
    return Editor(Graph(ops, "c"))


def wiring(editor: Editor) -> dict[str, tuple[str, ...]]:
    graph = editor.graph()
    assert {name: set(editor.readers(name)) for name in graph.ops} == {n: set(r) for n, r in graph.readers.items()}
    return {name: op.inputs for name, op in graph.ops.items()}


def test_operators_are_put_where_they_run(editor: Editor) -> None:
    assert editor.insert_after("a", "d", Operator("tanh", ("a",), width=2)) == "d"
    assert editor.insert_before("a", "d", Operator("tanh", ("x",), width=2)) == "d+"
    assert list(wiring(editor)) == ["x", "d+", "a", "d", "b", "c"]


def test_whoever_reads_reads_another(editor: Editor) -> None:
    editor.bypass("b", "a")
    assert wiring(editor) == {"x": (), "a": ("x",), "c": ("a", "a")}
    editor.bypass("c", "a")
    assert editor.graph().output == "a"
    assert wiring(editor) == {"x": (), "a": ("x",)}


def test_the_output_has_no_only_reader(editor: Editor) -> None:
    assert editor.is_only_reader("c", "b")
    assert not editor.is_only_reader("b", "a")
    editor.redirect("c", "b")
    assert not editor.is_only_reader("c", "b")


def test_the_neighbourhood_is_told_once(editor: Editor) -> None:
    editor.change("a", replace(editor.ops["a"], kind="sigmoid"))
    assert set(editor.neighbourhood_of_changes()) == {"x", "a", "b", "c"}
    assert editor.neighbourhood_of_changes() == []
