"""Stage two, run on the far side: makes modules of the bundle and starts the agent.

It is shipped as text in front of the modules and executed in stage one's namespace; nothing here
ever imports it. ``start(parts)`` gets the bundle split at its zero bytes: this text, then a file
name and a source for each module.

A module is compiled when it is first imported, not before: the stub needs a fifth of the bundle,
and it stands between login and first byte. That is what the finder below is for; it is not a remote
import, for every byte is here already. File names and lines are those of the source tree, so a
traceback from the far side reads as one from here.

The same rules as for what it loads: Python 3.6, standard library. importlib's frozen half is used
directly because importlib.machinery costs another millisecond of imports.
"""

import sys
import types
from _frozen_importlib import ModuleSpec

PACKAGE_FILE = "__init__.py"


class BundleFinder:
    """A meta path finder and loader over {module name: (file name, source)}."""

    def __init__(self, sources: "dict[str, tuple[str, bytes]]") -> None:
        self.sources = sources

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        """The import protocol's question: is this one yours?"""
        if name not in self.sources:
            return None
        file_name = self.sources[name][0]
        package = file_name.endswith(PACKAGE_FILE)
        return ModuleSpec(name, self, origin=file_name, is_package=package)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """None means: an ordinary module."""

    def exec_module(self, module: "types.ModuleType") -> None:
        """Compile and run."""
        file_name, source = self.sources[module.__name__]
        module.__file__ = file_name
        exec(compile(source, file_name, "exec", 0, True), module.__dict__)

    def get_source(self, name: str) -> str:
        """For the lines in tracebacks (linecache asks)."""
        return self.sources[name][1].decode("utf-8")


def start(parts: "list[bytes]") -> None:
    """Install the modules and run the agent's main."""
    sources = {}
    for file_name, source in zip(parts[1::2], parts[2::2]):  # noqa: B905 (not in Python 3.6)
        name = file_name.decode("ascii")
        module = name[: -len(".py")].replace("/", ".")
        if name.endswith(PACKAGE_FILE):
            module = module[: -len(".__init__")]
        sources[module] = name, source
    sys.meta_path.insert(0, BundleFinder(sources))  # type: ignore[arg-type]
    from sshunt.agent.main import main

    main()
