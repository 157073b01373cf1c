"""One job on a Ray cluster: parts run where there is room, and their predictions are committed here, in order.

Parts are Ray tasks and not actors or a Ray Data set. A task that lost its worker or node runs again wherever there is
room; an actor of a lost node waits for room that other actors hold, with its parts behind it. Ray Data needs pandas and
pyarrow too. What is left to do here is to bound the work in flight and to take results in order. A worker process opens
the model once and keeps it for the next part.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from scorer.errors import DeviceError, Yt8mError
from scorer.inputs.position import Position
from scorer.job.part import moved_chunk, plan
from scorer.job.record import Options
from scorer.job.run import open_output, options_of, predictions_of
from scorer.job.spec import Job, Progress, Report
from scorer.job.writer import JobWriter, chunks_of
from scorer.model.predictor import Predictor
from scorer.outputs.formats import make_format
from scorer.outputs.row_format import RowOptions
from scorer.outputs.sink import Chunk, JobKey, shard_id
from scorer.system.packages import install_command, version
from scorer.system.signals import StopRequest

_PART_BYTES = 64 << 20  # of shards: some 14,000 videos, whose predictions are 3 MB
_PARTS_A_SLOT = 4  # at least, where there are so many shards, so that none waits long for the last
_IN_FLIGHT = 2  # parts a slot: one runs, and one is done or waits
_LOOK_SECONDS = 0.1  # between looks at the request to stop
_RETRIES = 20  # of a part whose worker or node was lost


@dataclass(frozen=True)
class Cluster:
    """Where parts run. address: Ray's; None for this machine. open: opens the model in a worker. cpus: of a worker."""

    address: str | None
    open: Callable[[], Predictor]
    cpus: int = 1


@dataclass(frozen=True)
class _Made:
    """What came of a part. error: what ended it early, after its chunks."""

    node: str
    version: str
    options: Options
    chunks: list[Chunk]
    error: Yt8mError | None


def score_on_cluster(
    job: Job,
    predictor: Predictor,
    cluster: Cluster,
    stop: StopRequest,
    watch: Callable[[Progress], None],
    log: Callable[[str], None] = lambda line: None,
) -> Report:
    """As `scorer.job.run.score`, with the predictions made on `cluster`; `predictor` says what all nodes must have.

    Raises:
        DeviceError: no Ray, no cluster, a node with another version, model or runtime, or a part that is lost for good.
        Yt8mError: what `scorer.job.run.score` raises.
    """
    options, shards = options_of(job, predictor), tuple(map(shard_id, job.shards))
    began = time.monotonic()
    row_format = make_format(job.row_format, RowOptions(job.threshold, job.names))
    with (
        open_output(job.output, JobKey(options.key(), shards), row_format, job.resume_policy, stop) as sink,
        connected(cluster) as ray,
    ):
        writer = JobWriter(sink, shards, options, job.max_errors)
        resumed = writer.scored
        if sink.completed is None:
            driver = _Driver(ray, job, cluster, options, stop)
            writer.write(driver.chunks(writer.end), stop, watch, job.commit_seconds)
            log(", ".join(f"{node}: {count} parts" for node, count in sorted(driver.nodes.items())))
        return Report(
            record=writer.complete(job.output),
            quarantine_place=sink.quarantine_place,
            seconds=time.monotonic() - began,
            resumed=resumed,
            batch_size=predictor.batch_size,
            workers=0,
        )


@contextmanager
def connected(cluster: Cluster) -> Iterator[Any]:
    """Ray, connected or started on this machine's own address: without its dashboard, and reporting to nobody."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        import ray
    except ModuleNotFoundError:
        raise DeviceError("ray is not installed", remedy=install_command("cpu,ray")) from None
    alone = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"} if cluster.address is None else {}
    try:
        ray.init(cluster.address or "local", log_to_driver=False, logging_level="ERROR", **alone)
    except Exception as error:
        raise DeviceError(f"no Ray cluster at {cluster.address or 'this machine'}: {_line(error)}") from None
    try:
        for number, handler in handlers.items():
            signal.signal(number, handler)  # Ray's own would end the process where it stands
        yield ray
    finally:
        ray.shutdown()


class _Driver:
    """Hands parts out, a bounded number at a time, and gives what comes back in order. nodes: parts by node."""

    def __init__(self, ray: Any, job: Job, cluster: Cluster, options: Options, stop: StopRequest) -> None:
        self.nodes: Counter[str] = Counter()
        self._ray, self._job, self._cluster, self._options, self._stop = ray, job, cluster, options, stop
        wanted = {"num_cpus": cluster.cpus, "max_retries": _RETRIES, "scheduling_strategy": "SPREAD"}
        self._task = ray.remote(**wanted)(_run)
        self._folder = os.getcwd()

    def chunks(self, start: Position) -> Generator[Chunk]:
        """The predictions from `start` on, until the request to stop."""
        left = self._job.shards[start.shard :]
        slots = self._slots()
        size = sum(shard.stat.size for shard in left)
        parts = plan(left, max(1, min(len(left), max(size // _PART_BYTES, slots * _PARTS_A_SLOT))))
        todo = deque(part.shards for part in parts if part.shards)
        running: deque[tuple[int, Any]] = deque()
        first = start.shard
        begin = replace(start, shard=0)
        while todo or running:
            while todo and len(running) < _IN_FLIGHT * self._slots():
                shards = todo.popleft()
                job = replace(self._job, shards=shards, output="", names=None)
                running.append((len(shards), self._task.remote(job, begin, self._cluster.open, self._folder)))
                begin = Position(0, 0, 0)
            count, reference = running[0]
            if not self._ready(reference):
                if self._stop.is_set():
                    return
                continue
            running.popleft()
            yield from self._taken(reference, first)
            first += count

    def _slots(self) -> int:
        """Parts that the nodes of today run at once."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 0) / self._cluster.cpus))

    def _ready(self, reference: Any) -> bool:
        done, _ = self._ray.wait([reference], timeout=_LOOK_SECONDS)
        return bool(done)

    def _taken(self, reference: Any, first: int) -> Iterator[Chunk]:
        try:
            made: _Made = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            raise DeviceError(f"the cluster lost a part for good: {_line(error)}") from None
        addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in self._ray.nodes()}
        node = f"{addresses.get(made.node, 'a lost one')} ({made.node[:6]})"
        self._check(made, node)
        self.nodes[node] += 1
        for chunk in made.chunks:
            yield moved_chunk(chunk, first)
        if made.error is not None:
            raise made.error

    def _check(self, made: _Made, node: str) -> None:
        if made.version != version():
            raise DeviceError(f"node {node} has yt8m-edge {made.version}, and this machine {version()}")
        if made.chunks and made.options != self._options:
            ours, theirs = self._options.to_json(), made.options.to_json()
            other = ", ".join(f"{name} {theirs[name]}, not {ours[name]}" for name in ours if ours[name] != theirs[name])
            raise DeviceError(f"node {node} scores otherwise: {other}", remedy="install the same on all nodes")


_opened: dict[str, Predictor] = {}
"""The model that this worker process has open, by what opened it."""


def _run(job: Job, start: Position, open_model: Callable[[], Predictor], folder: str) -> _Made:
    """In a worker: the predictions for the shards of `job` from `start` on."""
    import ray

    os.chdir(folder)  # addresses and models may be named from there
    key = repr(open_model)
    chunks: list[Chunk] = []
    error: Yt8mError | None = None
    options = Options("", "", "", job.top_k, job.on_error)
    try:
        if key not in _opened:
            _opened.clear()
            _opened[key] = open_model()
        predictor = _opened[key]
        options = options_of(job, predictor)
        for chunk in chunks_of(predictions_of(job, predictor, lambda line: None), start, StopRequest()):
            chunks.append(chunk)
    except Yt8mError as raised:
        error = raised
    return _Made(ray.get_runtime_context().get_node_id(), version(), options, chunks, error)


def _line(error: Exception) -> str:
    """The last line of what Ray says, which has the cause."""
    lines: Sequence[str] = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
