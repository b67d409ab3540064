"""Gets the stock ESPnet recipes that match the installed ESPnet.

ESPnet's wheel carries no ``egs2``; its source distribution does. This module fetches that with
pip, so that proxies, mirrors and offline folders the user configured for pip are obeyed,
unpacks the recipes into a cache folder and puts back what a source distribution cannot hold:
links between folders, and the files that ESPnet's own installer would have made.

It imports neither torch nor ESPnet::

    tree = prepare(user_cache())
    recipe = link(tree, "mini_an4/asr1", Path("exp/mini_an4"))
    subprocess.run(["./run.sh", "--ngpu", "0"], cwd=recipe)
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from espnet_bimamba.errors import RecipeError
from espnet_bimamba.files import draft_of, user_cache, write_whole

#: What is unpacked. ESPnet's Python packages stay out: beside the installed ones they would
#: shadow them for whoever starts Python in the tree.
PARTS = ("egs2", "egs3", "tools", "utils", "test", "test_utils", "LICENSE", "version.txt")

#: Folders of ``TEMPLATE/asr1`` that every recipe reaches by a link.
SHARED = ("scripts", "pyscripts", "steps", "utils")

#: What a recipe writes: not linked, should somebody have run it in the tree itself.
PRODUCTS = ("data", "dump", "exp", "downloads")

#: Folders of a recipe that hold files of its own beside those of ESPnet's template.
MERGED = ("conf", "local")

#: What ESPnet asks its users to edit: where the corpora lie, and how jobs are started. A working
#: copy has copies of these, which are the user's from then on.
EDITED = ("db.sh", "cmd.sh", "queue.conf", "slurm.conf", "pbs.conf")

#: Where Debian's package sctk puts sclite, which is not on PATH.
DEBIAN_SCTK = Path("/usr/lib/sctk/bin")

SPH2PIPE = '''\
#!/usr/bin/env python3
"""Stand-in for sph2pipe, written by espnet-bimamba: sph2pipe -f wav -p -c 1 in.sph > out.wav."""

import argparse
import io
import sys

import soundfile

parser = argparse.ArgumentParser()
parser.add_argument("-f", choices=["wav"], required=True)
parser.add_argument("-p", action="store_true", help="16 bit, which is what is written anyway")
parser.add_argument("-c", type=int, default=1)
parser.add_argument("sphere")
args = parser.parse_args()

samples, rate = soundfile.read(args.sphere, dtype="int16", always_2d=True)
wav = io.BytesIO()
soundfile.write(wav, samples[:, args.c - 1], rate, format="WAV", subtype="PCM_16")
sys.stdout.buffer.write(wav.getvalue())
'''

ACTIVATE = """\
# Written by espnet-bimamba: the environment that runs the recipe comes first on PATH.
PATH="${{VIRTUAL_ENV:-{prefix}}}/bin:${{PATH}}"
export PATH
"""


def installed_version() -> str:
    """Version of the installed ESPnet, as its metadata gives it.

    Raises:
        RecipeError: ESPnet is not installed.
    """
    try:
        return importlib.metadata.version("espnet")
    except importlib.metadata.PackageNotFoundError:
        raise RecipeError(
            f"no ESPnet is installed for {sys.executable}",
            "pip install '.[recipe]' in a clone of espnet-bimamba",
        ) from None


def prepare(cache: Path, version: str | None = None) -> Path:
    """Path of the recipe tree in ``cache``, fetched and unpacked if it is not there yet.

    A half-made tree is never seen under its final name, so an interrupted call can simply be
    repeated and two calls at once do not disturb each other. A source distribution that lies in
    ``cache`` already (an offline machine) is used as it is.

    Args:
        cache: Folder for the source distribution and the tree; made if missing.
        version: ESPnet's version; the installed one if not given.

    Returns:
        ``cache/espnet-VERSION``, absolute.

    Raises:
        RecipeError: ESPnet, pip, the network or the version is missing, what was fetched is no
            ESPnet source distribution, or ``cache`` cannot be written to.
    """
    version = version or installed_version()
    cache = cache.absolute()
    tree = cache / f"espnet-{version}"
    with _written_to(cache):
        if not tree.is_dir():
            print("fetching and unpacking ESPnet's stock recipes (36 MB)", file=sys.stderr)
            cache.mkdir(parents=True, exist_ok=True)
            _unpack(_fetch(cache, version), tree)
        _write_tools(tree / "tools")
    return tree


@contextlib.contextmanager
def _written_to(folder: Path) -> Iterator[None]:
    """Says which file below ``folder`` cannot be written, and why."""
    try:
        yield
    except OSError as error:
        raise RecipeError(
            f"{error.filename or folder} cannot be written: {error.strerror}",
            f"name a folder other than {folder}, or make it one that can be written to",
        ) from error


def link(tree: Path, recipe: str, root: Path) -> Path:
    """Makes a working copy of one recipe, in links, and returns its folder.

    What the recipe writes (``data``, ``dump``, ``exp``, ``downloads``) lands in the working
    copy, so the tree stays as ESPnet ships it and several runs do not collide. What users are
    asked to edit (:data:`EDITED`) is copied. A file that is no link is the user's and stays,
    also when this is called again.

    Args:
        tree: What :func:`prepare` returned.
        recipe: Corpus and task, for example ``mini_an4/asr1``.
        root: Where the copy goes: ``root/egs2/mini_an4/asr1`` beside the links that recipes
            expect three folders up. May hold one already.

    Raises:
        RecipeError: The tree has no such recipe, or ``root`` has whitespace in its path or cannot
            be written to.
    """
    _refuse_whitespace(root)
    stage = "egs3" if (tree / "egs3" / recipe).is_dir() else "egs2"
    stock = tree / stage / recipe
    if not stock.is_dir():
        raise RecipeError(
            f"{tree} has no recipe {recipe!r}", f"see {tree / 'egs2'} for their names"
        )
    work = root.absolute() / stage / recipe
    with _written_to(root):
        _lay_out(work, stock)
        for name in MERGED:
            _lay_out(work / name, stock / name)
        _symlink(root.absolute() / "tools", tree / "tools")
        _symlink(root.absolute() / stage / "TEMPLATE", tree / stage / "TEMPLATE")
    return work


def link_own(tree: Path, own: Path, recipe: str, root: Path) -> Path:
    """Makes a working copy of a recipe that ESPnet lacks, and returns its folder.

    It holds what the ``setup.sh`` of its task's template would put into a new recipe, as links,
    and over it the recipe's own files. Folders that all tasks share are those of ``asr1``.

    Args:
        tree: What :func:`prepare` returned.
        own: The recipe's own folder: ``run.sh``, ``local``, ``conf``.
        recipe: Corpus and task, for example ``asru/asr1`` or ``se/enh1``.
        root: Where the copy goes, as for :func:`link`.

    Raises:
        RecipeError: ``own`` is no folder, ESPnet has no template for that task, or ``root`` has
            whitespace in its path or cannot be written to.
    """
    _refuse_whitespace(root)
    if not own.is_dir():
        raise RecipeError(f"{own} is no folder", "name the folder that holds the recipe's run.sh")
    work = root.absolute() / "egs2" / recipe
    template = tree / "egs2" / "TEMPLATE"
    task = template / Path(recipe).name
    if not task.is_dir():
        raise RecipeError(
            f"{template} has no task {task.name!r}", "see its folders for their names"
        )
    layers = [template / "asr1", task, own.absolute()]
    with _written_to(root):
        _lay_out(work, *layers)
        for name in SHARED:
            _symlink(work / name, template / "asr1" / name)
        for name in MERGED:
            _lay_out(work / name, *(layer / name for layer in layers))
        _symlink(root.absolute() / "tools", tree / "tools")
        _symlink(root.absolute() / "egs2" / "TEMPLATE", template)
    return work


def _refuse_whitespace(root: Path) -> None:
    """Refuses what ESPnet's ``tools/extra_path.sh`` ends at, without a word.

    It goes by the path that the shell was told, or by the one behind all links.
    """
    for path in (root.absolute(), root.resolve()):
        if any(character.isspace() for character in str(path)):
            raise RecipeError(
                f"a working copy in {str(path)!r} is not possible: whitespace in its path ends "
                "ESPnet's scripts without a message",
                "name another folder: --work of a runner, --to of `espnet-bimamba recipes get`",
            )


def _lay_out(work: Path, *folders: Path) -> None:
    """Fills ``work`` with what the folders hold, of two files of one name the later folder's."""
    there = [folder for folder in folders if folder.is_dir()]
    entries = {entry.name: entry for folder in there for entry in folder.iterdir()}
    if not entries:
        return
    if work.is_symlink():  # to the whole folder, as an earlier version of this module left it
        work.unlink()
    work.mkdir(parents=True, exist_ok=True)
    for name, entry in entries.items():
        if name in EDITED:
            _copy(work / name, entry)
        elif name not in (*PRODUCTS, *MERGED):
            _symlink(work / name, entry)


def find_sclite(tree: Path) -> Path | None:
    """The scoring program that the recipes of ``tree`` would call, if there is one."""
    path = os.pathsep.join([str(tree / "tools" / "sctk" / "bin"), os.environ.get("PATH", "")])
    found = shutil.which("sclite", path=path)
    return Path(found) if found else None


def _fetch(cache: Path, version: str) -> Path:
    """Path of the source distribution, downloaded if ``cache`` does not hold it."""
    sdist = cache / f"espnet-{version}.tar.gz"
    if sdist.is_file():
        return sdist
    if importlib.util.find_spec("pip") is None:
        raise RecipeError(
            f"{sys.executable} has no pip to fetch ESPnet's recipes with",
            f"{sys.executable} -m ensurepip; or put espnet-{version}.tar.gz into {cache}",
        )
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as folder:
        _pip_download(version, Path(folder))
        found = next(Path(folder).glob("espnet-*.tar.gz"), None)
        if found is None:
            raise RecipeError(
                f"pip found no source distribution of espnet {version}",
                f"put espnet-{version}.tar.gz into {cache}",
            )
        found.replace(sdist)
    return sdist


def _pip_download(version: str, folder: Path) -> None:
    # Without build isolation pip reads the metadata with the setuptools that ESPnet itself
    # depends on, instead of fetching a second one.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation"]
    command += ["--no-binary", "espnet", "--dest", str(folder), f"espnet=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    offline = "from versions: none" in done.stderr or "from versions" not in done.stderr
    remedy = "check the network and pip's configuration" if offline else "install a released ESPnet"
    raise RecipeError(
        f"pip could not fetch the source distribution of espnet {version}:\n{_tail(done.stderr)}\n",
        f"{remedy}; or put espnet-{version}.tar.gz into {folder.parent}",
    )


def _tail(text: str, lines: int = 5) -> str:
    return "\n".join(f"    {line}" for line in text.strip().splitlines()[-lines:])


def _unpack(sdist: Path, tree: Path) -> None:
    with tempfile.TemporaryDirectory(dir=tree.parent, prefix=".unpack-") as folder:
        inside = Path(folder) / tree.name
        try:
            with tarfile.open(sdist) as archive:
                archive.extractall(folder, members=_wanted(archive, tree.name), filter="data")
        except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
            raise RecipeError(
                f"{sdist} cannot be unpacked: {error}", "delete it and retry"
            ) from error
        if not (inside / "egs2" / "TEMPLATE" / "asr1").is_dir():
            raise RecipeError(f"{sdist} holds no ESPnet recipes", "delete it and retry")
        _restore_links(inside / "egs2")
        try:
            inside.replace(tree)
        except OSError:
            if not tree.is_dir():  # otherwise another process was faster, with the same content
                raise


def _wanted(archive: tarfile.TarFile, top: str) -> Iterator[tarfile.TarInfo]:
    for member in archive:
        folder, _, rest = member.name.partition("/")
        if folder == top and rest.partition("/")[0] in PARTS:
            yield member


def _restore_links(egs2: Path) -> None:
    """Links what ESPnet's repository links: a source distribution drops links to folders."""
    for recipe in egs2.glob("*/*/"):
        if recipe.parent.name == "TEMPLATE":
            continue
        for name in SHARED:
            if not (recipe / name).exists():
                (recipe / name).symlink_to(Path("../../TEMPLATE/asr1") / name)
        if not (recipe / "local").exists() and (recipe.parent / "asr1" / "local").is_dir():
            (recipe / "local").symlink_to("../asr1/local")


def _write_tools(tools: Path) -> None:
    _write(tools / "activate_python.sh", ACTIVATE.format(prefix=sys.prefix))
    if shutil.which("sph2pipe") is None:
        _write(tools / "sph2pipe" / "sph2pipe", SPH2PIPE).chmod(0o755)
    if shutil.which("sclite") is None and (DEBIAN_SCTK / "sclite").is_file():
        (tools / "sctk").mkdir(exist_ok=True)
        _symlink(tools / "sctk" / "bin", DEBIAN_SCTK)


def _write(path: Path, text: str) -> Path:
    if path.is_file() and path.read_text() == text:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    # Another run may be sourcing the old file right now.
    write_whole(path, text)
    return path


def _copy(path: Path, source: Path) -> None:
    if _is_users(path):
        return
    with draft_of(path) as draft:
        shutil.copy(source, draft)


def _is_users(path: Path) -> bool:
    return path.exists() and not path.is_symlink()


def _symlink(path: Path, target: Path) -> None:
    if _is_users(path) or (path.is_symlink() and path.readlink() == target):
        return
    with draft_of(path) as draft:
        draft.symlink_to(target)


def main(argv: list[str] | None = None) -> int:
    """Prints the recipe tree's path; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m espnet_bimamba.recipes", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--cache", type=Path, default=user_cache(), help="default: %(default)s")
    args = parser.parse_args(argv)
    try:
        print(prepare(args.cache))
    except RecipeError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
