"""The command `score`. Nothing heavy is imported before the arguments are known to be good."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from scorer.cli.command import Parser, add_allow_empty, add_columns, run, typed_as
from scorer.cli.remedies import SCORE
from scorer.errors import PARTIAL_SUCCESS, Hint, ResumeError, UsageError, printable
from scorer.inputs.addresses import redacted
from scorer.model.devices import MOST_THREADS, MOST_VIDEOS, Provider, check_device
from scorer.system.signals import StopRequest, end_on_signals, stop_on_signals
from scorer.system.terminal import hold_standard_descriptors, print_stderr

if TYPE_CHECKING:
    from scorer.inputs.source import Source
    from scorer.job.spec import Job, Progress
    from scorer.job.workers import Cluster
    from scorer.model.model import Model

_MOST_PARTS = 1_000_000

_EPILOG = """\
examples:
  yt8m score samples/*.tfrecord -o preds.csv
  yt8m score 'shards/**/*.tfrecord' -o preds.csv --model bilstm --top-k 20
  yt8m score shards -o preds.csv --on-error skip --max-errors 100
  yt8m score shards -o preds.csv --resume
  find /data -name '*.tfrecord' -print0 | sort -z | yt8m score @- -o preds.csv
  yt8m score shards -o - | head
  yt8m score shards -o preds.jsonl.gz --names --threshold 0.5
  yt8m score shards -o preds.csv --embeddings videos.npy
  yt8m score shards -o preds.csv --part 3/16

exit codes:
   0  done, every record scored
   2  a wrong command line
   3  a shard is absent, unreadable or changed while it was read
   4  a shard is damaged
   5  a record is not what the model reads, or more than --max-errors are bad
   6  a model is absent, damaged or of another kind
   7  a device or runtime is absent or failed
   8  the output cannot be written
   9  an earlier run left work, cannot be resumed, or is still running
  10  done, but records were quarantined
  13  every record was quarantined: there is nothing to write
 130  stopped by SIGINT (Ctrl-C), 143 by SIGTERM; resume with --resume
 141  the reader of -o - closed the pipe
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `score` with `argv` (the process's own arguments by default); returns the exit code."""
    hold_standard_descriptors()
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    with stop_on_signals() as stop:
        return run("score", SCORE, lambda: _score(options, arguments, stop))


def _parser() -> argparse.ArgumentParser:
    parser = Parser("score", "Label the videos of YouTube-8M shards: the best labels of each, in a row.", _EPILOG)
    parser.add_argument(
        "shards",
        nargs="+",
        metavar="SHARD",
        help="TFRecord, Parquet or Arrow file, quoted pattern, folder (its .tfrecord, .tfrecord.gz, .parquet, .arrow "
        "or .feather files), an address of any of these (s3://, gs://, az://, https://, ...), or @FILE, a list of such "
        "names (@-: stdin)",
    )
    level = parser.add_mutually_exclusive_group()
    level.add_argument(
        "--level",
        choices=("auto", "video", "frame"),
        default="auto",
        help="read the records' own features, or the means of their frames [auto: what they have, the means first]",
    )
    level.add_argument(
        "--segments",
        action="store_const",
        dest="level",
        const="segment",
        help="score each labelled segment's frames, as a row id:start (2019)",
    )
    add_columns(parser)
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help="predictions (s3:// and such too); - for stdout",
    )
    _add_output_options(parser.add_argument_group("what is written"))
    _add_model_options(parser.add_argument_group("model"))
    _add_error_options(parser.add_argument_group("bad records and interrupted runs"))
    _add_speed_options(parser.add_argument_group("speed (chosen for model and machine where left out)"))
    scale = parser.add_argument_group("more than one machine")
    _add_scale_options(scale)
    _add_ray_options(scale)
    parser.add_argument("--quiet", action="store_true", help="errors only: no progress, no summary")
    return parser


def _add_output_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--top-k", "-k", type=_at_least(1), default=10, metavar="K", help="labels per video [10]")
    group.add_argument(
        "--threshold", type=_confidence, default=0.0, metavar="T", help="leave out labels of a lower confidence [0]"
    )
    group.add_argument(
        "--format",
        metavar="NAME",
        help="pairs, labels (both .csv), jsonl or parquet; all but the last also .gz or .zst [by the name, else pairs]",
    )
    group.add_argument(
        "--embeddings",
        metavar="FILE",
        help="what the model's last layer reads of each video, in the order of the rows, to .npy or .parquet (of "
        "models that are exported with --embeddings)",
    )
    group.add_argument("--names", action="store_true", help="the labels' names too, in jsonl and parquet")
    group.add_argument(
        "--vocabulary", metavar="FILE", help="those of this CSV file instead of the model's; includes --names"
    )


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model",
        metavar="PATH_OR_NAME",
        help="file, name in models/, or bundled [models/default.onnx, else bundled]",
    )
    where = group.add_mutually_exclusive_group()
    where.add_argument(
        "--device",
        type=_device,
        default="auto",
        help="auto, cpu, cuda, cuda:N, cuda:N,M or cuda:all [auto: CUDA where it opens]",
    )
    where.add_argument(
        "--provider",
        type=_provider,
        metavar="NAME[:KEY=VALUE,...]",
        help="another execution provider of ONNX Runtime: openvino, dml, migraphx or coreml, with its own options",
    )
    group.add_argument("--tf32", action="store_true", help="on CUDA: faster float32 products, of 10 bits")
    group.add_argument("--gpu-memory", type=_gibibytes, metavar="GIB", help="on CUDA: memory of each GPU to use [all]")


def _add_error_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--on-error", choices=("fail", "skip"), default="fail", help="stop at a bad record, or quarantine it [fail]"
    )
    add_allow_empty(group)
    group.add_argument(
        "--max-errors", type=_at_least(0), metavar="N", help="stop when more than N records are quarantined"
    )
    either = group.add_mutually_exclusive_group()
    either.add_argument(
        "--resume", action="store_true", help="continue where an earlier run stopped; the bytes are the same"
    )
    either.add_argument("--restart", action="store_true", help="discard what an earlier run left")


def _add_speed_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--batch-size", type=_at_least(1, MOST_VIDEOS), metavar="N", help="videos per run of the model")
    group.add_argument(
        "--threads", type=_at_least(1, MOST_THREADS), metavar="N", help="CPU threads that compute [all usable cores]"
    )


def _add_scale_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--part",
        type=_part,
        metavar="I/N",
        help="only part I of N, to FILE.part-I-of-N; yt8m merge joins them",
    )


def _add_ray_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="score on the Ray cluster there (auto: the one this machine is of); without ADDRESS, on this machine",
    )
    group.add_argument("--ray-cpus", type=_at_least(1, MOST_THREADS), default=1, metavar="N", help="CPUs a worker [1]")
    group.add_argument(
        "--ray-gpus", type=_gpus, default=0.0, metavar="X", help="GPUs a worker, or the share of one, as in 0.5 [0]"
    )
    group.add_argument(
        "--ray-parts",
        type=_at_least(1, _MOST_PARTS),
        metavar="N",
        help="let workers write N part files beside FILE, where one process would be the limit; yt8m merge joins them",
    )


def _gpus(text: str) -> float:
    """Ray counts whole GPUs, or ten-thousandths of one."""
    value = _number(text)
    if not (0 <= value < 1 or (value.is_integer() and 1 <= value <= MOST_THREADS)):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a share of a GPU nor a number of them")
    return value


def _part(text: str) -> tuple[int, int]:
    """Index and count of I/N, where I counts from 1."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count) <= _MOST_PARTS):
        raise argparse.ArgumentTypeError(f"{text!r} is none of 1/N to N/N")
    return int(index) - 1, int(count)


def _at_least(least: int, most: int | None = None) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
        if most is not None and int(text) > most:
            raise argparse.ArgumentTypeError(f"{text} is more than {most}")
        return int(text)

    return number


def _device(text: str) -> str:
    try:
        return check_device(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _provider(text: str) -> str:
    try:
        return str(Provider.parse(text))
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _confidence(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no confidence from 0 to 1")
    return value


def _gibibytes(text: str) -> int:
    """Bytes of `text`, a number of GiB."""
    size = _number(text) * 2**30
    if not 1 <= size < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory in GiB")
    return int(size)


def _number(text: str) -> float:
    """NaN, which is in no range, where `text` is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _score(options: argparse.Namespace, arguments: Sequence[str], stop: StopRequest) -> int:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy would start a thread a core, which spins and has no work

    from scorer.inputs.discover import check_shards_apart, find_shards
    from scorer.model.find import check_model_apart, find_model, open_model
    from scorer.outputs.formats import check_format, format_of
    from scorer.outputs.open import check_embeddings_output, check_output

    _check_scale(options)
    if options.max_errors is not None and options.on_error == "fail":
        raise UsageError("--max-errors counts quarantined records", remedy="add --on-error skip")
    with end_on_signals():  # a list may come from a terminal, an address from a server
        shards = find_shards(options.shards, options.output, allow_empty=options.allow_empty)
    check_output(options.output)  # what is wrong with it is said before anything is opened
    model_path = find_model(options.model)[0]
    check_model_apart(model_path, options.output)
    if options.embeddings:
        from scorer.outputs.embeddings import embedding_output

        check_shards_apart(shards, options.embeddings)
        check_model_apart(model_path, options.embeddings)
        check_embeddings_output(options.output, embedding_output(options.embeddings))
    row_format = format_of(options.output, options.format)
    check_format(row_format, names=options.names or bool(options.vocabulary))

    from scorer.system.memory import give_memory_back

    give_memory_back()
    begun = _size_begun(options) if options.resume else None
    options.batch_size = options.batch_size or begun
    with end_on_signals():  # nothing is begun, and a model may keep ONNX Runtime busy for ever
        model, origin = open_model(options.model, lambda path: _open(path, options))
    job = _job(options, shards, row_format, _names(options, model))
    with _naming_size(begun, options.batch_size, model):
        return _write(options, job, model, origin, stop, arguments)


def _write(
    options: argparse.Namespace, job: Job, model: Model, origin: str, stop: StopRequest, arguments: Sequence[str]
) -> int:
    from scorer.cli.summary import print_summary
    from scorer.job.run import score

    log = _log_of(options)
    if options.part:
        return _score_part(options, job, model, origin, stop, arguments)
    if options.ray_parts:
        return _score_parts(options, job, model, origin, stop, arguments)
    if options.ray:
        from scorer.job.cluster import score_on_cluster

        cluster = _cluster(options, model.facts.path)
        report = _run(
            job, arguments, options.quiet, lambda watch: score_on_cluster(job, model, cluster, stop, watch, log)
        )
    else:
        report = _run(job, arguments, options.quiet, lambda watch: score(job, model, stop, watch, log))
    if report is None:
        return stop.exit_code
    if not options.quiet:
        print_summary(report, model, origin, options.output)
    return PARTIAL_SUCCESS if report.record.quarantined else 0


def _size_begun(options: argparse.Namespace) -> int | None:
    """The size of batches of the job that is to be resumed, where its rows' last bits depend on it."""
    from scorer.job.part_file import begun_part, part_path
    from scorer.model.placement import fitted_size
    from scorer.outputs.open import begun_options

    count = options.ray_parts or 0
    if parts := [options.part] if options.part else [(index, count) for index in range(count)]:
        begun = begun_part([part_path(options.output, *part) for part in parts])
        runtime = begun.options.runtime if begun else ""
    else:
        runtime = str(begun_options(options.output).get("runtime", ""))
    size = fitted_size(runtime)
    return size if size and size <= MOST_VIDEOS else None


@contextmanager
def _naming_size(begun: int | None, asked: int | None, model: Model) -> Iterator[None]:
    """Let a refusal to resume name the size of batches that the job was begun with, where the model has another."""
    from scorer.model.placement import fitted_size

    try:
        yield
    except ResumeError as error:
        other = begun and fitted_size(model.facts.runtime) not in (None, begun)
        if other and error.remedy and Hint.RESTART in error.hints:
            what = "memory for batches of" if asked == begun else "--batch-size"
            error.remedy += f", with {what} {begun}"
        raise


def _check_scale(options: argparse.Namespace) -> None:
    if options.part and options.ray:
        raise UsageError("--ray cuts a job into parts itself", remedy="leave --part out, or use --ray-parts")
    if options.ray_parts and not options.ray:
        raise UsageError("--ray-parts is about the workers of a cluster", remedy="add --ray, or use --part")
    if options.ray_gpus and (options.provider or options.device not in ("auto", "cuda")):
        raise UsageError("with --ray-gpus Ray says which GPUs a worker takes", remedy="use --device cuda")


def _open(path: str, options: argparse.Namespace, device: str | None = None) -> Model:
    """device: in the place of the one that is asked for."""
    from scorer.model.model import Model

    return Model.open(
        path,
        device=device or options.device,
        threads=options.threads,
        batch_size=options.batch_size,
        tf32=options.tf32,
        gpu_memory=options.gpu_memory,
        provider=options.provider,
    )


def _names(options: argparse.Namespace, model: Model) -> Sequence[str] | None:
    """Of all labels, where they are to be written."""
    from pathlib import Path

    from scorer.model.vocabulary import read_vocabulary

    if options.vocabulary:
        return read_vocabulary(Path(options.vocabulary), model.facts.labels)
    if options.names and model.facts.names is None:
        raise UsageError(f"{model.facts.path} has no names of labels", remedy="give them with --vocabulary FILE")
    return model.facts.names if options.names else None


def _cluster(options: argparse.Namespace, path: str) -> Cluster:
    """path: the model that is open here, which on a GPU may be another file than the one that was found first."""
    from scorer.job.workers import Cluster

    own = argparse.Namespace(**{**vars(options), "threads": options.threads or options.ray_cpus})
    address = None if options.ray == "local" else options.ray
    return Cluster(address, partial(_open, path, own), options.ray_cpus, options.ray_gpus)


def _job(options: argparse.Namespace, shards: Sequence[Source], row_format: str, names: Sequence[str] | None) -> Job:
    from scorer.job.spec import Job

    return Job(
        shards=shards,
        output=options.output,
        top_k=options.top_k,
        on_error=options.on_error,
        level=options.level,
        columns=options.columns,
        max_errors=options.max_errors,
        resume_policy="resume" if options.resume else "restart" if options.restart else "refuse",
        row_format=row_format,
        threshold=options.threshold,
        names=names,
        embeddings=options.embeddings or "",
    )


def _score_part(
    options: argparse.Namespace, job: Job, model: Model, origin: str, stop: StopRequest, arguments: Sequence[str]
) -> int:
    from dataclasses import replace

    from scorer.cli.summary import print_part_summary
    from scorer.job.job_array import score_part
    from scorer.job.part import plan

    log, (index, count) = _log_of(options), options.part
    part = plan(job.shards, count)[index]
    own = replace(job, shards=part.shards)  # what the bar shows
    report = _run(own, arguments, options.quiet, lambda watch: score_part(job, part, model, stop, watch, log))
    if report is None:
        return stop.exit_code
    if not options.quiet:
        print_part_summary(report, model, origin)
    return PARTIAL_SUCCESS if report.quarantined else 0


def _score_parts(
    options: argparse.Namespace, job: Job, model: Model, origin: str, stop: StopRequest, arguments: Sequence[str]
) -> int:
    from scorer.cli.summary import print_parts_summary
    from scorer.job.cluster import score_parts_on_cluster

    log, cluster, count = _log_of(options), _cluster(options, model.facts.path), options.ray_parts
    report = _run(
        job,
        arguments,
        options.quiet,
        lambda watch: score_parts_on_cluster(job, count, model, cluster, stop, watch, log),
    )
    if report is None:
        return stop.exit_code
    if not options.quiet:
        print_parts_summary(report, model, origin, options.output)
    return PARTIAL_SUCCESS if report.quarantined else 0


_Report = TypeVar("_Report")


def _run(
    job: Job, arguments: Sequence[str], quiet: bool, action: Callable[[Callable[[Progress], None]], _Report]
) -> _Report | None:
    """What `action` reports, given what shows the progress of `job`; None where a signal ended it."""
    from scorer.job.spec import Stopped

    try:
        with _shown(job, quiet) as watch:
            return action(watch)
    except Stopped as stopped:
        if stopped.scored:
            _report(f"score: {stopped.scored:,} videos are kept; resume with: {_resuming(arguments)}")
        else:
            _report("score: stopped before anything was kept")
        return None


def _log_of(options: argparse.Namespace) -> Callable[[str], None]:
    return lambda line: None if options.quiet else _report(f"score: {line}")


def _resuming(arguments: Sequence[str]) -> str:
    """The command that resumes the job of `arguments`, to paste into a shell; passwords in it are left out."""
    end = arguments.index("--") if "--" in arguments else len(arguments)  # names of shards follow
    kept = [argument for argument in arguments[:end] if argument not in ("--restart", "--resume")]
    return shlex.join([*typed_as("score"), "--resume", *map(redacted, [*kept, *arguments[end:]])])


def _shown(job: Job, quiet: bool) -> AbstractContextManager[Callable[[Progress], None]]:
    from scorer.cli.progress import shown_progress

    return shown_progress("score", len(job.shards), sum(shard.stat.size for shard in job.shards), quiet)


def _report(line: str) -> None:
    print_stderr(printable(line))


if __name__ == "__main__":
    sys.exit(main())
