"""Text that comes from the other side, before a person sees it."""


def printable(text: str) -> str:
    """``text`` on one line: what could move a cursor or ring a bell is a blank."""
    return "".join(c if c.isprintable() else " " for c in text)
