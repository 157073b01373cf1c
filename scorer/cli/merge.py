"""The command `merge`: part files of `score --part` to the output of one run."""

from __future__ import annotations

import argparse
import glob
import os
import sys
from collections.abc import Sequence

from scorer.cli.command import Parser, run
from scorer.cli.remedies import MERGE
from scorer.errors import PARTIAL_SUCCESS, printable
from scorer.system.signals import StopRequest, stop_on_signals
from scorer.system.terminal import hold_standard_descriptors, print_stderr

_EPILOG = """\
examples:
  yt8m merge preds.csv.part-*-of-16 -o preds.csv
  yt8m merge preds.csv.part-*-of-16 -o preds.csv --resume

exit codes:
   0  done, every record scored
   2  a wrong command line
   3  a part is missing, given twice, damaged or of another job
   5  more than --max-errors are bad
   8  the output cannot be written
   9  an earlier run left work, cannot be resumed, or is still running
  10  done, but records were quarantined
  13  every record was quarantined: there is nothing to write
 130  stopped by SIGINT (Ctrl-C), 143 by SIGTERM; resume with --resume
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `merge` with `argv` (the process's own arguments by default); returns the exit code."""
    hold_standard_descriptors()
    options = _parser().parse_args(argv)
    with stop_on_signals() as stop:
        return run("merge", MERGE, lambda: _merge(options, stop))


def _parser() -> argparse.ArgumentParser:
    parser = Parser("merge", "Join the parts of a job into the predictions of one run, to the byte.", _EPILOG)
    parser.add_argument("parts", nargs="+", metavar="PART", help="part file of score --part, or quoted pattern")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="predictions; - for standard output")
    parser.add_argument(
        "--embeddings", metavar="FILE", default="", help="where those go of parts that have them, as for score"
    )
    parser.add_argument(
        "--max-errors", type=_whole, metavar="N", help="stop when more than N records of all parts are quarantined"
    )
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="continue where an earlier merge stopped")
    either.add_argument("--restart", action="store_true", help="discard what an earlier run left")
    parser.add_argument("--quiet", action="store_true", help="errors only: no progress, no summary")
    return parser


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def _merge(options: argparse.Namespace, stop: StopRequest) -> int:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in score

    from scorer.cli.progress import shown_progress
    from scorer.cli.summary import print_merge_summary
    from scorer.job.job_array import found_parts, merge_files
    from scorer.job.spec import Stopped

    parts = found_parts([path for name in options.parts for path in _expanded(name)])
    sizes = [shard.stat.size for part in parts for shard in part.shards]
    try:
        with shown_progress("merge", len(sizes), sum(sizes), options.quiet) as watch:
            record = merge_files(
                parts,
                options.output,
                resume_policy="resume" if options.resume else "restart" if options.restart else "refuse",
                max_errors=options.max_errors,
                stop=stop,
                watch=watch,
                embeddings=options.embeddings,
            )
    except Stopped as stopped:
        print_stderr(f"merge: {stopped.scored:,} videos are kept; merge again with --resume")
        return stop.exit_code
    if not options.quiet:
        print_merge_summary(record, printable(options.output))
    return PARTIAL_SUCCESS if record.quarantined else 0


def _expanded(name: str) -> list[str]:
    if glob.has_magic(name) and not os.path.lexists(name):
        return sorted(glob.glob(name)) or [name]
    return [name]


if __name__ == "__main__":
    sys.exit(main())
