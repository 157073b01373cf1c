"""The command `yt8m inspect`: what an exported file reads, answers and says about itself.

Read through the scorer's own session, so that what is printed is what would be scored with.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorer.cli.command import Parser, run
from scorer.cli.remedies import INSPECT
from scorer.errors import ModelError, printable
from scorer.model.onnx_file import EXPORT_IT
from scorer.system.signals import end_on_signals

if TYPE_CHECKING:
    from scorer.model.model import Model

_EPILOG = """\
examples:
  yt8m inspect models/bilstm.onnx
  yt8m inspect bilstm --json

exit codes:
   0  done
   2  a wrong command line
   6  no model, or one of another contract
   7  no ONNX Runtime
 141  the reader of a pipe has gone
"""
_PREFIX = "yt8m."


def main(argv: Sequence[str] | None = None) -> int:
    """Run `inspect` with `argv` (the process's own arguments by default); returns the exit code."""
    options = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    return run("inspect", INSPECT, lambda: _inspect(options))


def _inspect(options: argparse.Namespace) -> int:
    from scorer.model.find import find_model
    from scorer.model.model import Model

    with end_on_signals():  # a model may keep ONNX Runtime busy for ever
        model = Model.open(find_model(options.model)[0], device="cpu")
    _show(_text(model, as_object=options.json))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser("inspect", "Print an ONNX file's contract, metadata and reports.", _EPILOG)
    parser.add_argument("model", nargs="?", metavar="PATH_OR_NAME", help="as for `yt8m score --model` [its default]")
    parser.add_argument("--json", action="store_true", help="everything as one JSON object, label names included")
    return parser


def _text(model: Model, *, as_object: bool) -> str:
    """What is to be printed. Raises ModelError where metadata is nested more deeply than Python follows."""
    try:
        return json.dumps(as_json(model), indent=2) if as_object else describe(model)
    except RecursionError:
        raise ModelError(f"{model.facts.path}: its metadata is nested too deeply", remedy=EXPORT_IT) from None


def _show(text: str) -> None:
    """Print what the terminal's encoding has, escapes for the rest; flushed here, where a closed pipe is expected."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def as_json(model: Model) -> dict[str, Any]:
    """The contract and all metadata, JSON entries parsed, keys without their `yt8m.`."""
    width = model.facts.embeddings
    embeddings = {"embeddings": f"float32 [batch, {width}]"} if width else {}
    entries = {key.removeprefix(_PREFIX): _parsed(value) for key, value in sorted(model.facts.metadata.items())}
    return {
        "path": model.facts.path,
        "bytes": Path(model.facts.path).stat().st_size,
        "sha256": model.facts.sha256,
        "inputs": model.facts.inputs,
        "dtype": model.facts.dtype,
        "outputs": {"scores": "float32 [batch, k]", "labels": "int64 [batch, k]", **embeddings},
        "metadata": entries,
    }


def describe(model: Model) -> str:
    """The same in aligned lines for a person; of label names the first few."""
    facts = as_json(model)
    metadata = dict(facts["metadata"])
    names = metadata.pop("names", None)
    lines = [
        ("model", f"{metadata.pop('model', 'unnamed')}, {metadata.pop('precision', 'precision unknown')}"),
        ("file", f"{facts['path']}, {facts['bytes']:,} bytes"),
        ("sha256", facts["sha256"]),
        ("reads", ", ".join(f"{name} {facts['dtype']} [batch, {width}]" for name, width in model.facts.inputs.items())),
        ("answers", ", ".join(f"{name} {kind}" for name, kind in facts["outputs"].items()) + "; k is 10 or as asked"),
        ("labels", f"{model.facts.labels:,}, {'such as ' + ', '.join(names[:3]) if names else 'without names'}"),
    ]
    metadata.pop("labels", None)
    lines += _flat(metadata)
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(printable(f"{name:<{width}}{value}") for name, value in lines)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested objects as `outer.inner` lines."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value if isinstance(value, str) else json.dumps(value)


def _parsed(value: str) -> Any:
    """JSON objects and lists as such, anything else as the text it is."""
    if value[:1] not in ("{", "["):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


if __name__ == "__main__":
    sys.exit(main())
