"""setuptools, without a trace of its work in the checkout.

By itself it leaves build/ and an egg-info directory beside the sources: root's, if root installs,
and the next installation takes modules from there that have been deleted since. Here both are made
in a temporary directory; nothing else is different.
"""

import functools
import os
import tempfile
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from setuptools import build_meta

P = ParamSpec("P")
T = TypeVar("T")


def _elsewhere(hook: Callable[P, T]) -> Callable[P, T]:
    @functools.wraps(hook)
    def work(*args: P.args, **kwargs: P.kwargs) -> T:
        with tempfile.TemporaryDirectory() as folder:
            config = os.path.join(folder, "setup.cfg")
            with open(config, "w", encoding="utf-8") as file:
                file.write(f"[build]\nbuild_base={folder}\n[egg_info]\negg_base={folder}\n")
            os.environ["DIST_EXTRA_CONFIG"] = config  # setuptools reads it last
            try:
                return hook(*args, **kwargs)
            finally:
                del os.environ["DIST_EXTRA_CONFIG"]

    return work


get_requires_for_build_wheel = _elsewhere(build_meta.get_requires_for_build_wheel)
prepare_metadata_for_build_wheel = _elsewhere(build_meta.prepare_metadata_for_build_wheel)
build_wheel = _elsewhere(build_meta.build_wheel)
get_requires_for_build_editable = _elsewhere(build_meta.get_requires_for_build_editable)
prepare_metadata_for_build_editable = _elsewhere(build_meta.prepare_metadata_for_build_editable)
build_editable = _elsewhere(build_meta.build_editable)
get_requires_for_build_sdist = _elsewhere(build_meta.get_requires_for_build_sdist)
build_sdist = _elsewhere(build_meta.build_sdist)
