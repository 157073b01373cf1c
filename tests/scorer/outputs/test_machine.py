"""Whatever the order of appends, commits, crashes, resumes and completions: the output is whole, or what it was."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scorer.errors import ResumeError
from scorer.outputs.sink import ResumePolicy
from tests.scorer.outputs.harness import RECORDS, Driver, FileHarness, Harness, NpyHarness, ToyHarness, key, record
from tests.scorer.outputs.test_conformance import exactly


class SinkMachine(RuleBasedStateMachine):
    """A sink, and beside it what it must have: how many records are committed and which version was completed."""

    make: Callable[[Path], Harness]

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.harness: Harness = self.make(self.folder)
        self.stack = ExitStack()
        self.driver: Any = None  # a Driver while the sink is open
        self.committed = 0
        self.completed = False

    def teardown(self) -> None:
        self.stack.close()
        shutil.rmtree(self.folder)

    def opened(self, policy: ResumePolicy) -> Driver:
        sink = self.stack.enter_context(self.harness.open(key(), policy))
        self.driver = driver = Driver(sink, key())
        return driver

    def closed(self) -> None:
        self.stack.close()
        self.driver = None

    @precondition(lambda self: self.driver is None)
    @rule(policy=st.sampled_from(["refuse", "resume", "restart"]))
    def open(self, policy: ResumePolicy) -> None:
        if policy == "refuse" and self.committed:
            try:
                self.opened(policy)
            except ResumeError:
                return
            raise AssertionError("an unfinished run was overwritten")
        driver = self.opened(policy)
        self.committed = 0 if policy != "resume" else self.committed
        assert driver.done == self.committed

    @precondition(lambda self: self.driver is not None and self.driver.done < sum(RECORDS))
    @rule(count=st.integers(1, 9))
    def append(self, count: int) -> None:
        self.driver.append(count)

    @precondition(lambda self: self.driver is not None and self.driver.done > self.committed)
    @rule()
    def commit(self) -> None:
        self.driver.commit()
        self.committed = self.driver.done

    @precondition(lambda self: self.driver is not None)
    @rule()
    def leave(self) -> None:
        """As after an error."""
        self.closed()

    @precondition(lambda self: self.driver is not None)
    @rule()
    def crash(self) -> None:
        snapshot = self.harness.snapshot()
        self.closed()
        self.harness.restore(snapshot)

    @precondition(lambda self: self.driver is not None)
    @rule()
    def complete(self) -> None:
        self.driver.complete()
        self.closed()
        self.committed, self.completed = 0, True
        assert self.harness.unfinished() == []

    @precondition(lambda self: self.driver is not None)
    @rule()
    def discard(self) -> None:
        self.driver.sink.discard()
        self.closed()
        self.committed = 0
        assert self.harness.unfinished() == []

    @invariant()
    def the_output_is_whole_or_absent(self) -> None:
        expected = (exactly(sum(RECORDS)), record()) if self.completed else None
        assert self.harness.output() == expected


class FileMachine(SinkMachine):
    make = FileHarness


class GzipMachine(SinkMachine):
    make = staticmethod(partial(FileHarness, row_format="jsonl.gz"))


class EmbeddingsMachine(SinkMachine):
    make = NpyHarness


class ToyMachine(SinkMachine):
    make = ToyHarness


TestFileSink = FileMachine.TestCase
TestGzipSink = GzipMachine.TestCase
TestEmbeddings = EmbeddingsMachine.TestCase
TestToySink = ToyMachine.TestCase
for case in (TestFileSink, TestGzipSink, TestEmbeddings, TestToySink):
    case.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
