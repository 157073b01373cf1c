"""Results that outlive the command: a second call makes only what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.files import replace_file


def cached(path: Path, about: Any, make: Callable[[], Any]) -> Any:
    """What the file `path` holds if it was made with the same `about`, else what `make` gives, then written there.

    Both as JSON gives them. Raises OutputError.
    """
    about = json.loads(json.dumps(about))
    text = json.loads(path.read_text()) if path.exists() else {}
    if text.get("about") == about:
        return text["result"]
    result = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda part: part.write_text(json.dumps({"about": about, "result": result}, indent=1) + "\n"))
    return result
