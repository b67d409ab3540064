"""Tables in Markdown, and the part of a document that a program writes."""

import sys
from collections.abc import Callable
from pathlib import Path

from espnet_bimamba.errors import BiMambaError
from espnet_bimamba.files import write_whole

END = "<!-- end -->"


class DocumentError(BiMambaError):
    """A document has no place for what a program writes; the message names both."""


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """Return a table, or in words that it is empty."""
    if not rows:
        return "None."
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def put(text: str, file: Path, program: str) -> None:
    """Replace what stands between a program's markers; make the file if there is none.

    Args:
        text: What the program found.
        file: Of Markdown.
        program: Its path in the repository, which the first marker names.

    Raises:
        DocumentError: The file has no markers.
    """
    marker = f"<!-- written by {program} -->"
    old = file.read_text(encoding="utf-8") if file.exists() else f"# Results\n\n{marker}\n{END}\n"
    before, begin, rest = old.partition(marker)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DocumentError(f"{file} has no lines {marker} and {END} to put the tables between")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, f"{before}{marker}\n\n{text}\n\n{END}{after}")


def publish(make: Callable[[], str], file: Path | None, program: str) -> int:
    """Print what a program finds, put it into a document, and return the program's exit code.

    Args:
        make: Finds it.
        file: Of Markdown, as in :func:`put`; None for no document.
        program: As in :func:`put`.
    """
    try:
        text = make()
        if file:
            put(text, file, program)
        print(text)
    except (BiMambaError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0
