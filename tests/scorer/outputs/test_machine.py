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
from tests.scorer.outputs.harness import (
    RECORDS,
    FileHarness,
    Harness,
    NpyHarness,
    PartFileHarness,
    SinkDriver,
    ToyHarness,
    key,
    record,
)
from tests.scorer.outputs.test_conformance import exactly


class SinkMachine(RuleBasedStateMachine):
    """A sink, and beside it what it must have: how many records are committed and which version was completed."""

    make: Callable[[Path], Harness]

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.harness: Harness = self.make(self.folder)
        self.stack = ExitStack()
        self.driver: Any = None  # a SinkDriver while the sink is open
        self.committed = 0
        self.completed = False

    def teardown(self) -> None:
        self.stack.close()
        shutil.rmtree(self.folder)

    def opened(self, policy: ResumePolicy) -> SinkDriver:
        sink = self.stack.enter_context(self.harness.open(key(), policy))
        self.driver = driver = SinkDriver(sink, key())
        return driver

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
        assert len(driver.sink.finished) == driver.end.shard

    @precondition(lambda self: self.driver is not None and self.driver.done < sum(RECORDS))
    @rule(count=st.integers(1, 9))
    def append(self, count: int) -> None:
        self.driver.append(count)

    @precondition(lambda self: self.driver is not None and self.driver.done > self.committed)
    @rule()
    def commit(self) -> None:
        self.driver.commit()
        self.committed = self.driver.done
        assert len(self.driver.sink.finished) == self.driver.end.shard

    @precondition(lambda self: self.driver is not None)
    @rule(how=st.sampled_from(["leave", "crash", "complete", "discard"]))
    def end(self, how: str) -> None:
        """One rule, so that several appends and commits come before it often enough."""
        getattr(self, f"_{how}")()
        self.driver = None
        if how != "crash" and not self.committed:
            assert self.harness.unfinished() == []

    def _leave(self) -> None:
        """As after an error."""
        self.stack.close()

    def _crash(self) -> None:
        snapshot = self.harness.snapshot()
        self.stack.close()
        self.harness.restore(snapshot)

    def _complete(self) -> None:
        self.driver.complete()
        self.stack.close()
        self.committed, self.completed = 0, True

    def _discard(self) -> None:
        self.driver.sink.discard()
        self.stack.close()
        self.committed = 0

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


class PartFileMachine(SinkMachine):
    make = PartFileHarness


class ToyMachine(SinkMachine):
    make = ToyHarness


def tried(machine: type[SinkMachine], examples: int) -> Any:
    """The test of a machine, with so many sequences of up to 20 steps."""
    case: Any = machine.TestCase
    case.settings = settings(max_examples=examples, stateful_step_count=20, deadline=None)
    return case


TestFileSink = tried(FileMachine, 25)
TestGzipSink = tried(GzipMachine, 15)
TestEmbeddings = tried(EmbeddingsMachine, 15)
TestPartFile = tried(PartFileMachine, 25)
TestToySink = tried(ToyMachine, 200)
