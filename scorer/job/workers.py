"""Tasks on a Ray cluster that run parts of a job: how they are handed out, and what is checked of what comes back.

Parts are Ray tasks and not actors or a Ray Data set. A task that lost its worker or node runs again wherever there is
room; an actor of a lost node waits for room that other actors hold, with its parts behind it. Ray Data needs pandas and
pyarrow too. What is left to do here is to bound the work in flight. A worker process opens the model once and keeps it
for the next part.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from scorer.errors import DeviceError, Hint, ModelError, Yt8mError
from scorer.job.part import difference
from scorer.job.record import Options
from scorer.job.run import options_of
from scorer.job.spec import Job
from scorer.model.predictor import Predictor
from scorer.system.packages import install_command, version

_IN_FLIGHT = 2  # parts a slot: one runs, and one is done or waits
_WAIT_SECONDS = 0.1  # between looks at the request to stop
_LOOK_SECONDS = 1.0  # between looks at the nodes
_LET_GO_SECONDS = 2.0  # that tasks have to end when they are cancelled
_RETRIES = 20  # of a part whose worker or node was lost, or which ran out of memory
_KEEP_ALL_GPUS = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
"""Workers see every GPU of their node and are told which to use: CUDA looks at what it may see once in a process, and a
worker may be given another for its next part."""
_ESCAPES = re.compile("\x1b\\[[0-9;]*m")

Work = Callable[[Predictor], Iterator[Any]]
"""What is done with the model in a worker. What it yields is sent back, also where an error ends it."""


@dataclass(frozen=True)
class Cluster:
    """Where parts run.

    address: Ray's; None for this machine. cpus, gpus: of a worker; of GPUs also a fraction.
    open: opens the model in a worker, on the device that it is given; on its own choice for None.
    """

    address: str | None
    open: Callable[[str | None], Predictor]
    cpus: int = 1
    gpus: float = 0.0

    @property
    def worker(self) -> dict[str, float]:
        """What a worker takes of a node's resources, by Ray's names of them."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}


@dataclass(frozen=True)
class Made:
    """What came of a task. options: None where no model opened. error: what ended it, after its `results`."""

    node: str
    version: str
    options: Options | None
    results: list[Any]
    error: Yt8mError | None


@contextmanager
def connected(cluster: Cluster, log: Callable[[str], None]) -> Iterator[Any]:
    """Ray, connected or started on this machine's own address: without its dashboard, and reporting to nobody.

    What Ray prints on standard output goes to `log` instead. Raises DeviceError.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        import ray
    except ModuleNotFoundError:
        raise DeviceError("ray is not installed", remedy=install_command("cpu,ray")) from None
    more: dict[str, Any] = {"runtime_env": {"env_vars": {_KEEP_ALL_GPUS: "1"}}} if cluster.gpus else {}
    if cluster.address is None:
        more |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    with contextlib.redirect_stdout(_Said(log)):
        try:
            ray.init(cluster.address or "local", log_to_driver=False, logging_level="ERROR", **more)
        except Exception as error:
            raise DeviceError(f"no Ray cluster at {cluster.address or 'this machine'}: {_line(error)}") from None
        try:
            for number, handler in handlers.items():
                signal.signal(number, handler)  # Ray's own would end the process where it stands
            yield ray
        finally:
            ray.shutdown()


class _Said(io.TextIOBase):
    """Standard output as Ray prints on it, where rows may go: the first sentence of each text, for a log."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log

    def write(self, text: str) -> int:
        if sentence := _ESCAPES.sub("", text).strip().partition("\n")[0].partition(". ")[0]:
            self._log(f"Ray says: {sentence}")
        return len(text)


@dataclass
class _Node:
    """A node that was seen. name: its address and the beginning of Ray's name of it. parts: that it made."""

    name: str
    slots: int
    parts: int = 0
    alive: bool = True


class Workers:
    """The tasks of one job. It says which nodes join and are lost, and at the end what each did."""

    def __init__(self, ray: Any, job: Job, cluster: Cluster, options: Options, log: Callable[[str], None]) -> None:
        self._ray, self._job, self._cluster, self._options, self._log = ray, job, cluster, options, log
        wanted: dict[str, Any] = {"num_cpus": cluster.cpus, "num_gpus": cluster.gpus, "max_calls": 0}
        retries = {"max_retries": _RETRIES, "retry_exceptions": [MemoryError]}
        self._task = ray.remote(**wanted, **retries, scheduling_strategy="SPREAD")(run_task)
        self._folder = os.getcwd()
        self._in_flight: set[Any] = set()
        self._nodes: dict[str, _Node] = {}
        self._looked = 0.0
        self._look()

    @property
    def slots(self) -> int:
        """Parts that the nodes of today run at once; at least 1."""
        if time.monotonic() > self._looked + _LOOK_SECONDS:
            self._look()
        return max(1, sum(node.slots for node in self._nodes.values() if node.alive))

    @property
    def most(self) -> int:
        """Tasks that may be in flight."""
        return _IN_FLIGHT * self.slots

    def start(self, work: Work) -> Any:
        """Begin a task; what is to be waited for."""
        task = self._task.remote(work, self._job, self._cluster.open, self._folder)
        self._in_flight.add(task)
        return task

    def ready(self, tasks: Sequence[Any]) -> list[Any]:
        """Those of `tasks` that are done, after a moment at most."""
        done, _ = self._ray.wait([*tasks], num_returns=1, timeout=_WAIT_SECONDS)
        return [*done]

    def results(self, task: Any) -> Iterator[Any]:
        """What a task that is done yielded, and then its error. Raises DeviceError where it did not run as asked."""
        self._in_flight.discard(task)
        try:
            made: Made = self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            raise self._failure(error) from None
        if made.node not in self._nodes:
            self._look()
        node = self._nodes.get(made.node) or _Node(made.node, 0)
        self._check(made, node.name)
        node.parts += 1
        yield from made.results
        if isinstance(made.error, DeviceError | ModelError):
            made.error.message = f"node {node.name}: {made.error.message}"
        if made.error is not None:
            raise made.error

    def close(self) -> None:
        """Cancel what is in flight: of tasks that a command leaves behind Ray at times writes on standard error."""
        left = [*self._in_flight]
        for task in left:
            self._ray.cancel(task)
        if left:
            self._ray.wait(left, num_returns=len(left), timeout=_LET_GO_SECONDS)

    def summary(self) -> str:
        """How many parts each node made."""
        lost = {True: "", False: " (lost)"}
        return ", ".join(f"{node.name}: {node.parts} parts{lost[node.alive]}" for node in self._nodes.values())

    def _look(self) -> None:
        first, self._looked = not self._nodes, time.monotonic()
        for seen in self._ray.nodes():
            name = f"{seen['NodeManagerAddress']} ({seen['NodeID'][:6]})"
            known = self._nodes.get(seen["NodeID"])
            if known is None and seen["Alive"]:
                self._nodes[seen["NodeID"]] = node = _Node(name, self._slots(seen["Resources"]))
                if not first:
                    self._log(f"node {name} joined, for {node.slots} parts at once")
            elif known is not None and known.alive and not seen["Alive"]:
                known.alive = False
                self._log(f"node {name} is lost; its parts run again elsewhere")
        if first:
            slots = [node.slots for node in self._nodes.values()]
            self._log(f"{len(slots)} nodes, for {sum(slots)} parts at once")

    def _slots(self, resources: dict[str, float]) -> int:
        return int(min(resources.get(name, 0) / each for name, each in self._cluster.worker.items()))

    def _check(self, made: Made, node: str) -> None:
        if made.version != version():
            raise DeviceError(f"node {node} has yt8m-edge {made.version}, and this machine {version()}")
        if made.options not in (None, self._options):
            other = difference(made.options, self._options)
            raise DeviceError(f"node {node} scores otherwise: {other} here", remedy="install the same on all nodes")

    def _failure(self, error: Exception) -> DeviceError:
        if isinstance(error, MemoryError):
            return DeviceError("a worker of the cluster ran out of memory", hints=(Hint.SMALLER_BATCH,))
        if isinstance(error, self._ray.exceptions.RayTaskError):
            return DeviceError(f"a worker of the cluster failed: {_line(error)}", remedy="see Ray's logs")
        return DeviceError(f"the cluster lost a part for good: {_line(error)}", remedy="see Ray's logs")


_opened: dict[str, Predictor] = {}
"""The model that this worker process has open, by what opened it, and where."""


def run_task(work: Work, job: Job, open_model: Callable[[str | None], Predictor], folder: str) -> Made:
    """In a worker: `work` with the model, for `job`."""
    import ray

    os.chdir(folder)  # addresses and models may be named from there
    results: list[Any] = []
    options = error = None
    try:
        predictor = _opened_model(open_model, assigned_device())
        options = options_of(job, predictor)
        for result in work(predictor):
            results.append(result)
    except Yt8mError as raised:
        error = raised
    return Made(ray.get_runtime_context().get_node_id(), version(), options, results, error)


def _opened_model(open_model: Callable[[str | None], Predictor], device: str | None) -> Predictor:
    key = f"{open_model!r} on {device}"
    if key not in _opened:
        _opened.clear()
        _opened[key] = open_model(device)
    return _opened[key]


def assigned_device() -> str | None:
    """The GPUs that Ray gave this task, as CUDA counts those that the process sees; None where it gave none."""
    import ray

    given = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    numbers = sorted(seen.index(name) if name in seen else int(name) for name in given)
    return "cuda:" + ",".join(map(str, numbers)) if numbers else None


def _line(error: Exception) -> str:
    """The last line of what Ray says, which has the cause."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
