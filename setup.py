"""Refuses an older Python at once. pip compares `requires-python` of a folder with extras only after it has tried every
release of every dependency, which takes many minutes; everything else is in pyproject.toml.
"""

import sys

from setuptools import setup

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(f"yt8m-edge needs Python 3.11 or newer, and this is {sys.version.split()[0]} ({sys.executable})")
setup()
