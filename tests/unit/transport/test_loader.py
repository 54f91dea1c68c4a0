"""Stage two: modules out of a bundle, with the names and lines of the source tree."""

import linecache
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module, invalidate_caches

import pytest

from sshunt.transport.loader import BundleFinder

SOURCES = {
    "bundled": ("bundled/__init__.py", b"WHERE = __file__\n"),
    "bundled.good": ("bundled/good.py", b"from bundled import WHERE\nLIST = [WHERE, __name__]\n"),
    "bundled.bad": ("bundled/bad.py", b"# a comment\nraise KeyError('here')\n"),
}


@pytest.fixture
def bundled() -> Iterator[BundleFinder]:
    """A finder that is at work, and nothing of what it has brought afterwards."""
    finder = BundleFinder(SOURCES)
    sys.meta_path.insert(0, finder)  # type: ignore[arg-type]
    yield finder
    sys.meta_path.remove(finder)  # type: ignore[arg-type]
    for name in [name for name in sys.modules if name.partition(".")[0] == "bundled"]:
        del sys.modules[name]
    invalidate_caches()


def test_a_bundle_s_modules_are_imported_from_it(bundled: BundleFinder) -> None:
    good = import_module("bundled.good")
    assert good.LIST == ["bundled/__init__.py", "bundled.good"]
    assert good.__file__ == "bundled/good.py"


def test_what_is_not_in_the_bundle_is_left_to_others(bundled: BundleFinder) -> None:
    assert bundled.find_spec("json") is None
    with pytest.raises(ModuleNotFoundError):
        import_module("bundled.nothing")


def test_a_module_is_compiled_when_it_is_imported_and_not_before(bundled: BundleFinder) -> None:
    import_module("bundled")
    assert "bundled.bad" not in sys.modules


def test_an_error_is_told_with_its_file_line_and_text(bundled: BundleFinder) -> None:
    with pytest.raises(KeyError) as caught:
        import_module("bundled.bad")
    frame = caught.traceback[-1]
    assert frame.lineno == 1
    linecache.clearcache()
    module = {"__name__": "bundled.bad", "__loader__": bundled}
    assert linecache.getline("bundled/bad.py", 2, module) == "raise KeyError('here')\n"


def test_the_parts_of_a_bundle_become_a_program_whose_main_is_run() -> None:
    code = """
import sys
from sshunt.transport.bundle import agent_bundle
import zlib
parts = zlib.decompress(agent_bundle().data).split(bytes(1))
for name in [name for name in sys.modules if name.partition(".")[0] == "sshunt"]:
    del sys.modules[name]
sys.path[:] = [path for path in sys.path if "src" not in path]
exec(parts[0])
start(parts)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], input=b"no hello", capture_output=True, check=False
    )
    assert b"the client did not introduce itself" in done.stderr, done.stderr
