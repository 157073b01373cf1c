"""Which model file a command means: from a path, a name in models/, or the default."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from scorer.errors import Hint, ModelError, UsageError
from scorer.inputs.discover import identity

BUNDLED = Path(__file__).parents[1] / "bundled" / "default.onnx"


MODELS = Path("models")


def find_model(name: str | None) -> tuple[str, str]:
    """The model file for `name`, and in words where it came from.

    Raises:
        ModelError: neither a file nor a name in models/, no model at all, or one that may not be looked at.
    """
    if name is None:
        for path, origin in ((MODELS / "default.onnx", "the last export"), (BUNDLED, "bundled")):
            if _is_file(path):
                return str(path), origin
        raise ModelError("there is no models/default.onnx and no bundled model", hints=(Hint.OTHER_MODEL,))
    for path in (Path(name), MODELS / f"{name}.onnx"):
        if _is_file(path):
            return str(path), "as given"
    known = ", ".join(sorted(path.stem for path in MODELS.glob("*.onnx"))) or "nothing"
    raise ModelError(f"{name}: no such model", remedy=f"give a file or a name in models/, which has {known}")


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
