"""The contract of a model file (docs/formats.md), checked clause by clause on an open session."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorer.errors import DeviceError, ModelError
from scorer.model.devices import CPU
from scorer.model.onnx_file import EXPORT_IT
from scorer.model.runtime import Session, first_line, speaks_of_memory

FORMAT = "1"
OUTPUTS = ["scores", "labels"]
EMBEDDINGS = "embeddings"
"""The third output, which a model may have."""
_EMBEDDING_TOLERANCE = 1e-2  # of their largest value: rounding, in int8 and fp16 too, is well below that
_GREATEST = float(np.finfo(np.float32).max)
_INPUT_TYPES: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True)
class Contract:
    """What a model reads and gives.

    inputs: TFRecord feature -> width. dtype: what the features are sent as, float32 or float16.
    ranges: the least and the greatest value of an input's features that it was trained on, where the file has them.
    labels: how many there are. names: theirs, where the file has them. metadata: every entry of the file.
    embeddings: how wide those are that it gives; 0 where it gives none.
    """

    inputs: dict[str, int]
    dtype: type[np.float32] | type[np.float16]
    labels: int
    names: list[str] | None
    metadata: dict[str, str]
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    embeddings: int = 0


def outputs(embeddings: bool) -> list[str]:
    """What to ask a session for."""
    return [*OUTPUTS, EMBEDDINGS] if embeddings else OUTPUTS


def read_contract(path: str, session: Session) -> Contract:
    """What the model in `session` promises, and a few runs that keep it.

    Raises:
        ModelError: naming `path`, the first clause that is broken, and the remedy.
        DeviceError: a run has not enough memory.
        Exception: ONNX Runtime's, where a device other than the CPU fails in such a run.
    """
    try:
        metadata = dict(session.get_modelmeta().custom_metadata_map)
        inputs, dtype = _read_inputs(session)
        _check_k(session)
        embeddings = _read_outputs(session)
        labels, names = _read_labels(metadata)
        contract = Contract(inputs, dtype, labels, names, metadata, _read_ranges(metadata, inputs), embeddings)
        try_session(session, contract)
    except ValueError as error:
        raise ModelError(f"{path} is not a model for this scorer: {error}", remedy=EXPORT_IT) from None
    return contract


def _read_inputs(session: Session) -> tuple[dict[str, int], Any]:
    widths, types = {}, set()
    for node in session.get_inputs():
        if node.name == "k":
            raise ValueError("its input k has no default")
        if node.type not in _INPUT_TYPES:
            raise ValueError(f"its input {node.name} is {node.type}, not float32")
        if len(node.shape) != 2 or not isinstance(node.shape[1], int) or isinstance(node.shape[0], int):
            raise ValueError(f"its input {node.name} has shape {node.shape}, not [batch, width]")
        widths[node.name] = node.shape[1]
        types.add(node.type)
    if len(types) != 1:
        raise ValueError("its inputs are of several types" if types else "it has no inputs")
    return widths, _INPUT_TYPES[types.pop()]


def _check_k(session: Session) -> None:
    found = {node.name: (node.type, list(node.shape)) for node in session.get_overridable_initializers()}
    if found.get("k") != ("tensor(int64)", [1]):
        raise ValueError("it has no overridable initializer k of type int64[1]")


def _read_outputs(session: Session) -> int:
    """How wide the embeddings are; 0 where there are none."""
    found = {node.name: node for node in session.get_outputs()}
    for name, kind in (("scores", "tensor(float)"), ("labels", "tensor(int64)")):
        if name not in found or (found[name].type, len(found[name].shape)) != (kind, 2):
            raise ValueError(f"it has no output {name} of type {kind} and rank 2")
    for name in found.keys() - {*OUTPUTS, EMBEDDINGS}:
        raise ValueError(f"it has an output {name} beside scores, labels and embeddings")
    if EMBEDDINGS not in found:
        return 0
    node = found[EMBEDDINGS]
    is_rows = len(node.shape) == 2 and isinstance(node.shape[1], int) and not isinstance(node.shape[0], int)
    if node.type != "tensor(float)" or not is_rows:
        raise ValueError(f"its output embeddings is {node.type} {node.shape}, not tensor(float) [batch, width]")
    return int(node.shape[1])


def _read_labels(metadata: Mapping[str, str]) -> tuple[int, list[str] | None]:
    version = metadata.get("yt8m.format")
    if version is None:
        raise ValueError("its metadata has no yt8m.format")
    if version != FORMAT:
        raise ValueError(f"its yt8m.format is {version!r}, this scorer reads {FORMAT!r}")
    count = metadata.get("yt8m.labels", "")
    if not (count.isascii() and count.isdigit() and len(count) <= 10 and 0 < int(count) < 1 << 31):
        raise ValueError(f"its yt8m.labels is {count[:40]!r}, not a number of labels")
    names = _read_json(metadata, "yt8m.names")
    if names is not None and not (isinstance(names, list) and len(names) == int(count)):
        raise ValueError(f"its yt8m.names is not a list of {count} names")
    if names is not None and not all(map(_is_name, names)):
        raise ValueError("its yt8m.names holds something that is no name")
    return int(count), names


def _is_name(name: Any) -> bool:
    """Whether it is text that can be written."""
    return isinstance(name, str) and not any("\ud800" <= letter <= "\udfff" for letter in name)


def _read_ranges(metadata: Mapping[str, str], inputs: Mapping[str, int]) -> dict[str, tuple[float, float]]:
    ranges = _read_json(metadata, "yt8m.ranges") or {}
    if not isinstance(ranges, dict) or not all(map(_is_range, ranges.values())):
        raise ValueError("its yt8m.ranges is not an object of a least and a greatest number for each input")
    return {name: (float(low), float(high)) for name, (low, high) in ranges.items() if name in inputs}


def _is_range(pair: Any) -> bool:
    """Whether it is two finite numbers, the lower one first."""
    if not (isinstance(pair, list) and len(pair) == 2 and all(type(number) in (int, float) for number in pair)):
        return False
    low, high = pair
    return bool(-_GREATEST <= low <= high <= _GREATEST)


def _read_json(metadata: Mapping[str, str], key: str) -> Any:
    """Whatever JSON an entry holds; None where there is no such entry. Raises ValueError."""
    try:
        return json.loads(metadata.get(key, "null"))
    except RecursionError:
        raise ValueError(f"its {key} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"its {key} is no JSON: {error}") from None


def try_session(session: Session, contract: Contract) -> None:
    """Ask about a few videos for every label, so that what can only fail in a run fails before any shard is read."""
    videos = _videos(contract)
    together, all_embeddings = _ask(session, contract, videos)
    again = {name: values[[1, 1]] for name, values in videos.items()}  # as a slot asks
    alone, own_embeddings = _ask(session, contract, again)
    difference = float(np.abs(alone[0] - together[1]).max())
    if difference > _tolerance(session, contract):
        raise ValueError(f"a video's scores depend on the others in its batch, and differ by up to {difference:.2g}")
    if all_embeddings is not None and own_embeddings is not None:
        difference = float(np.abs(own_embeddings[0] - all_embeddings[1]).max())
        if difference > _EMBEDDING_TOLERANCE * float(np.abs(all_embeddings).max()):
            raise ValueError(f"a video's embedding depends on the others in its batch, by up to {difference:.2g}")


def _videos(contract: Contract) -> dict[str, NDArray[Any]]:
    """Three different ones. None is zero, which a model that scales by the norm could not take."""
    videos = {}
    for name, width in contract.inputs.items():
        row = np.linspace(-0.1, 0.12, width)
        videos[name] = np.stack([row, -3 * row[::-1], 8 * row]).astype(contract.dtype)
    return videos


def _tolerance(session: Session, contract: Contract) -> float:
    """What rounding may change a score by where the number of videos chooses other kernels, twice over."""
    half = contract.dtype is np.float16 or contract.metadata.get("yt8m.precision") == "fp16"
    return 4e-3 if half or session.get_providers()[0] != CPU else 2e-5


def _ask(
    session: Session, contract: Contract, videos: Mapping[str, NDArray[Any]]
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Every label's score of n videos, (n, labels), in the order of the labels, and their embeddings, (n, width)."""
    count = len(next(iter(videos.values())))
    try:
        wanted = outputs(bool(contract.embeddings))
        scores, labels, *rest = session.run(wanted, {**videos, "k": np.array([contract.labels], np.int64)})
    except Exception as error:
        if session.get_providers()[0] != CPU:
            raise
        if speaks_of_memory(error):
            raise DeviceError(f"there is not enough memory to run the model: {first_line(error)}") from error
        raise ValueError(f"it does not run: {first_line(error)}") from error
    if scores.shape != (count, contract.labels) or labels.shape != scores.shape:
        asked = f"asked for {contract.labels} labels of {count} videos"
        raise ValueError(f"{asked}, it gives {scores.shape} scores and {labels.shape} labels")
    if not (scores.min() >= 0 and scores.max() <= 1 and (np.diff(scores) <= 0).all()):
        raise ValueError("its scores do not descend within [0, 1]")
    found: NDArray[np.float32] = np.full_like(scores, np.nan)
    if labels.min() >= 0 and labels.max() < contract.labels:
        np.put_along_axis(found, labels, scores, axis=1)
    if np.isnan(found).any():
        raise ValueError(f"its labels are not 0 to {contract.labels - 1}, each once")
    for embeddings in rest:
        if embeddings.shape != (count, contract.embeddings) or not all_finite(embeddings):
            raise ValueError(f"its embeddings of {count} videos are {embeddings.shape}, or not finite")
    return found, rest[0] if rest else None


def all_finite(values: NDArray[np.float32]) -> bool:
    """Whether there is neither NaN nor infinity among at least one value; without an array of the answers."""
    return math.isfinite(values.min()) and math.isfinite(values.max())
