"""Where files go, and that they are there whole or not at all; not what is in them."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: What stands for stdout where a file is named.
STDOUT = Path("-")


def user_cache() -> Path:
    """Returns the folder of what a user's clones share: ``~/.cache/espnet-bimamba``.

    Compiled kernels and stock recipes lie there. ``XDG_CACHE_HOME`` is obeyed.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return caches / "espnet-bimamba"


@contextlib.contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """Gives a file to write, which takes the place of ``path`` when all of it was written.

    After a failure or an interruption what was at ``path`` is as it was, and the draft is gone.

    Args:
        path: The file that is made or replaced.

    Yields:
        A path beside it, with the same ending, that no other process takes.

    Raises:
        OSError: It cannot be written.
    """
    draft = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield draft
        draft.replace(path)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def write_whole(path: Path, text: str) -> None:
    """Writes a file in UTF-8, its line ends as they are in ``text``.

    Raises:
        OSError: It cannot be written; what was there before is untouched.
    """
    with draft_of(path) as draft:
        draft.write_bytes(text.encode("utf-8"))


def save_figure(figure: Any, stem: Path, dpi: int) -> list[Path]:
    """Saves a figure of matplotlib as PNG and SVG; the same picture makes the same bytes.

    Args:
        figure: The figure, which is closed.
        stem: The files' path without its ending; the folder is made if need be.
        dpi: Pixels an inch.

    Returns:
        Both files.

    Raises:
        OSError: They cannot be written.
    """
    from matplotlib import pyplot as plt

    stem.parent.mkdir(parents=True, exist_ok=True)
    saved = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    with plt.rc_context({"svg.hashsalt": stem.name}):
        for file in saved:
            # Of the two, only an SVG is dated.
            metadata = {"Date": None} if file.suffix == ".svg" else None
            with draft_of(file) as draft:
                figure.savefig(draft, dpi=dpi, metadata=metadata)
    plt.close(figure)
    return saved
