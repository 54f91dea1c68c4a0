"""Lists of names on the command line, checked against those that there are."""

import argparse
from collections.abc import Callable, Iterable


def some_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """The ``type`` of an option that takes some of ``known``, with commas between them."""
    names = list(known)

    def parse(text: str) -> list[str]:
        words = text.split(",")
        for word in words:
            if word not in names:
                raise argparse.ArgumentTypeError(f"no {word!r}; there are {', '.join(names)}")
        return words

    return parse
