"""Which model file a command means: from a path, a name in models/, or the default."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from scorer.errors import Hint, ModelError, UsageError
from scorer.inputs.discover import identity
from scorer.model.devices import CUDA

if TYPE_CHECKING:
    from scorer.model.model import Model
    from scorer.model.predictor import ModelFacts

BUNDLED = Path(__file__).parents[1] / "bundled" / "default.onnx"
_BUNDLED_NAME = "bundled"
MODELS = Path("models")
_MOST_DIGITS = 18
_WEIGHTS = "yt8m.weights_sha256"


def find_model(name: str | None) -> tuple[str, str]:
    """The model file for `name`, and in words where it came from: "bundled" is the package's own.

    Raises:
        ModelError: neither there nor a name in models/, no model at all, or one that may not be looked at.
    """
    if name is None:
        if _is_file(MODELS / "default.onnx"):
            return str(MODELS / "default.onnx"), "the last export"
        name = _BUNDLED_NAME
    if name == _BUNDLED_NAME and _is_file(BUNDLED):
        return str(BUNDLED), "bundled"
    for path in (Path(name), MODELS / f"{name}.onnx"):
        if _is_file(path):
            return str(path), "as given"
    if name == _BUNDLED_NAME:
        raise ModelError("there is no models/default.onnx and no bundled model", hints=(Hint.OTHER_MODEL,))
    if os.path.lexists(name):
        return name, "as given"  # whoever opens it says what it is instead
    known = ", ".join(sorted(path.stem for path in MODELS.glob("*.onnx"))) or "nothing"
    raise ModelError(f"{name}: no such model", remedy=f"give a file or a name in models/, which has {known}")


def open_model(name: str | None, open_path: Callable[[str], Model]) -> tuple[Model, str]:
    """The model of `find_model`, opened by `open_path`, and in words where it came from.

    Without a name, on CUDA: the fp16 file of the same weights where `export` wrote it beside the default, because
    CUDA computes int8 files in float32.

    Raises what `find_model` and `open_path` raise.
    """
    path, origin = find_model(name)
    model = open_path(path)
    if name is None and path != str(BUNDLED):
        origin = provenance(model.facts)
    if name is None and (twin := _fp16_twin(model.facts)) is not None:
        other = open_path(twin)
        if other.facts.metadata.get(_WEIGHTS) == model.facts.metadata.get(_WEIGHTS):
            return other, f"{origin}, in fp16 for CUDA"
    return model, origin


def provenance(facts: ModelFacts) -> str:
    """When a file was exported (its time of change), on how many videos its model was trained, and how good it was.

    That tells a model that was made to try things out from the one that is wanted.
    """
    words = ["exported"]
    with suppress(OSError):
        words[0] += f" {datetime.fromtimestamp(os.stat(facts.path).st_mtime):%Y-%m-%d %H:%M}"
    videos = facts.metadata.get("yt8m.videos", "")
    if videos.isascii() and videos.isdigit() and len(videos) <= _MOST_DIGITS:
        words.append(f"trained on {int(videos):,} videos")
    with suppress(ValueError, TypeError, KeyError, OverflowError, RecursionError):
        words.append(f"MAP@10 {float(json.loads(facts.metadata['yt8m.metrics'])['MAP@10']):.4f}")
    return ", ".join(words)


def _fp16_twin(facts: ModelFacts) -> str | None:
    """The file that `export --precision fp16` writes for the model of `facts`, where CUDA would gain by it."""
    model, precision = facts.metadata.get("yt8m.model", ""), facts.metadata.get("yt8m.precision")
    if facts.provider != CUDA or precision == "fp16" or not model.isidentifier():
        return None
    twin = Path(facts.path).with_name(f"{model}.fp16.onnx")
    return str(twin) if _is_file(twin) else None


def _is_file(model: Path) -> bool:
    try:
        return stat.S_ISREG(os.stat(model).st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:  # not "absent": the bundled model must not take the place of one that is there
        raise ModelError(f"{model}: {error.strerror}", remedy="check the path") from None


def check_model_apart(model: str, output: str) -> None:
    """Raises UsageError where the output would replace the model."""
    if (found := identity(model)) is not None and found == identity(output):
        raise UsageError(f"{model} is the model and the output {output} too", remedy="choose another output")
