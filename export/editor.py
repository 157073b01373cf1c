"""A Graph while it is changed: who reads whom, and the order of the operators, are kept up to date by every change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

from export.graph import Graph, Operator


class Editor:
    """Changes a graph in time that does not depend on its size, and says what lies around the changes."""

    def __init__(self, graph: Graph) -> None:
        self.ops = dict(graph.ops)
        self.output = graph.output
        self._readers: dict[str, dict[str, None]] = {n: dict.fromkeys(r) for n, r in graph.readers.items()}
        names = [_START, *graph.ops, _END]
        self._next = dict(pairwise(names))
        self._previous = {after: name for name, after in self._next.items()}
        self._changed: dict[str, None] = {}

    def readers(self, name: str) -> list[str]:
        """The operators that read `name`, in no certain order."""
        return list(self._readers[name])

    def is_only_reader(self, reader: str, name: str) -> bool:
        """Whether `reader` reads `name`, and nobody else needs it."""
        return name != self.output and list(self._readers[name]) == [reader]

    def change(self, name: str, op: Operator) -> None:
        """Put `op` in the place of operator `name`."""
        self._set_inputs(name, self.ops[name].inputs, op.inputs)
        self.ops[name] = op

    def insert_after(self, place: str, name: str, op: Operator) -> str:
        """Add an operator that runs right after `place`; gives its name, `name` with as many + as set it apart."""
        while name in self.ops:
            name += "+"
        self.ops[name] = op
        self._readers[name] = {}
        self._set_inputs(name, (), op.inputs)
        self._link(name, self._next[place])
        self._link(place, name)
        return name

    def insert_before(self, place: str, name: str, op: Operator) -> str:
        """As `insert_after`, right before `place`."""
        return self.insert_after(self._previous[place], name, op)

    def redirect(self, old: str, new: str) -> None:
        """Whoever reads `old` reads `new` instead, the output included."""
        for reader in self.readers(old):
            op = self.ops[reader]
            self.change(reader, replace(op, inputs=tuple(new if i == old else i for i in op.inputs)))
        self.output = new if self.output == old else self.output
        self._changed[new] = None

    def bypass(self, name: str, instead: str) -> None:
        """Remove operator `name`: whoever reads it reads `instead`."""
        self.redirect(name, instead)
        self._set_inputs(name, self.ops[name].inputs, ())
        del self.ops[name], self._readers[name]
        self._link(self._previous.pop(name), self._next.pop(name))

    def graph(self) -> Graph:
        """The graph as it stands."""
        ops = {}
        name = self._next[_START]
        while name != _END:
            ops[name] = self.ops[name]
            name = self._next[name]
        return Graph(ops, self.output)

    def neighbourhood_of_changes(self) -> list[str]:
        """What was changed since the last call, and the operators near it that may look at it: what it reads, three
        generations of readers, and what the first of them read."""
        changed = [name for name in self._changed if name in self.ops]
        self._changed = {}
        first = self._all_readers(changed)
        second = self._all_readers(first)
        near = [*changed, *first, *second, *self._all_readers(second)]
        near += (source for name in (*changed, *first) for source in self.ops[name].inputs)
        return list(dict.fromkeys(near))

    def _all_readers(self, names: Iterable[str]) -> list[str]:
        return list(dict.fromkeys(reader for name in names for reader in self._readers[name]))

    def _set_inputs(self, name: str, old: Iterable[str], new: Iterable[str]) -> None:
        for source in old:
            self._readers[source].pop(name, None)
        for source in new:
            self._readers[source][name] = None
        self._changed.update(dict.fromkeys((name, *old, *new)))

    def _link(self, first: str, second: str) -> None:
        self._next[first], self._previous[second] = second, first


_START, _END = "<start>", "<end>"
