"""docs/glossary.md: its words are in use, and words that have left the code don't come back."""

import re
from pathlib import Path

import sshunt

SOURCE = Path(sshunt.__file__).parent
DOCS = Path(__file__).parents[2] / "docs"
GLOSSARY = DOCS / "glossary.md"

#: Words, as patterns, for which the pages have a better one by now (the glossary's). A name in a
#: code span may still have them.
LEFT = (
    "beliefs?",
    "twins?",
    "passages?",
    "beats?",
    "crumbs",
    "spared( lanes?)?",
    "doors?",
    "waiting rooms?",
    "ghost lanes?",
    "kept address(es)?",
)


def words() -> list[str]:
    """The glossary's words, in its order."""
    rows = re.findall(r"^\| ([^|]+?) \|", GLOSSARY.read_text(), re.MULTILINE)
    return [row for row in rows if row not in ("word", "---")]


def in_use(word: str, text: str) -> bool:
    """Whether ``text`` has the word, as it is or as part of a name in code; its plural, too."""
    return re.search(word.lower().replace(" ", r"[\s_]+") + r"(?![a-rt-z])", text) is not None


def test_every_word_of_the_glossary_is_in_use() -> None:
    pages = [*SOURCE.rglob("*.py"), *(page for page in DOCS.rglob("*.md") if page != GLOSSARY)]
    text = "\n".join(page.read_text() for page in pages).lower()
    assert [word for word in words() if not in_use(word, text)] == []


def test_no_word_is_explained_twice() -> None:
    assert sorted(words()) == sorted(set(words()))


def test_no_page_uses_a_word_that_has_left_the_code() -> None:
    pages = [GLOSSARY.parents[1] / "README.md", GLOSSARY.parents[1] / "ARCHITECTURE.md"]
    pages += DOCS.rglob("*.md")
    used = [
        (page.name, word)
        for page in pages
        for word in LEFT
        if re.search(rf"\b{word}\b", re.sub("`[^`]*`", "", page.read_text()), re.IGNORECASE)
    ]
    assert used == []
