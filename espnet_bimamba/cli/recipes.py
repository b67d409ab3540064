"""``espnet-bimamba recipes``: the recipes that our configurations are for."""

import argparse
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from espnet_bimamba import recipes
from espnet_bimamba.errors import RecipeError
from espnet_bimamba.files import user_cache

#: Package of each program in Debian and Ubuntu, and another way to come by it: as ESPnet's
#: ``tools/Makefile`` gets flac, sox and sclite.
PACKAGES = {
    "flac": ("flac", "Conda: conda install -c conda-forge libflac"),
    "git": ("git", "Conda: conda install -c conda-forge git"),
    "gzip": ("gzip", "Conda: conda install -c conda-forge gzip"),
    "perl": ("perl", "Conda: conda install -c conda-forge perl"),
    "sclite": (
        "sctk",
        "Elsewhere: bash installers/install_sctk.sh in tools/ downloads and builds it, for all "
        "working copies, which share that folder",
    ),
    "sox": ("sox", "Conda: conda install -c conda-forge sox"),
    "tar": ("tar", "Conda: conda install -c conda-forge tar"),
    "wget": ("wget", "Conda: conda install -c conda-forge wget"),
    "which": ("debianutils", "Elsewhere: the system's package which"),
}

#: Programs that :func:`espnet_bimamba.recipes.prepare` writes a stand-in for.
STAND_INS = ("sph2pipe",)


@dataclass(frozen=True)
class Need:
    """A program that a recipe calls.

    Attributes:
        program: Its name.
        stage: First stage of ``run.sh`` that fails without it.
        purpose: What it does there.
    """

    program: str
    stage: int
    purpose: str


@dataclass(frozen=True)
class Recipe:
    """What is known of a recipe.

    Attributes:
        corpus: What it trains on.
        where: Where its ``run.sh`` looks for the corpus.
        needs: What its stages call beyond the shell and Python, read from ``run.sh``,
            ``asr.sh``, ``local/`` and the ``utils`` and ``scripts`` that they call.
        own: Our runner, where ESPnet lacks the recipe.
    """

    corpus: str
    where: str
    needs: tuple[Need, ...]
    own: str | None = None


PERL = Need("perl", 1, "utils/*.pl")
EVERYWHERE = (PERL, Need("sclite", 13, "scoring"))
SPEED = (Need("sox", 2, "speed perturbation"),)
LIBRISPEECH = (
    Need("which", 1, "local/data_prep.sh looks for flac with it"),
    Need("flac", 1, "local/data_prep.sh refuses to start without it"),
    Need("wget", 1, "downloads what is not there of the corpus, and text for a language model"),
    Need("tar", 1, "unpacks the corpus"),
    Need("gzip", 1, "unpacks the text for a language model"),
)
AN4 = (Need("tar", 1, "unpacks the corpus"), Need("sph2pipe", 3, "reads the corpus"))

RECIPES = {
    "librispeech_100": Recipe(
        "LibriSpeech, train-clean-100",
        "LIBRISPEECH in db.sh: the folder above LibriSpeech/",
        (*EVERYWHERE, *LIBRISPEECH, *SPEED),
    ),
    "librispeech_100/esp2_asr": Recipe(
        "LibriSpeech, train-clean-100, with ESPnet3",
        "LIBRISPEECH in the environment: LibriSpeech/ or the folder above it",
        (),
    ),
    "librispeech": Recipe(
        "LibriSpeech, 960 hours",
        "LIBRISPEECH in db.sh: the folder above LibriSpeech/",
        (*EVERYWHERE, *LIBRISPEECH, *SPEED),
    ),
    "seame": Recipe(
        "SEAME, Mandarin-English",
        "SEAME in db.sh: the folder of the corpus",
        (
            *EVERYWHERE,
            Need("git", 1, "clones the lists of the development sets"),
            *SPEED,
            Need("flac", 3, "reads the corpus"),
        ),
    ),
    "an4": Recipe(
        "AN4, downloaded",
        "downloads/an4, a folder or a link; downloaded if it is not there",
        (
            *EVERYWHERE,
            Need("which", 1, "local/download_and_untar.sh looks for wget with it"),
            Need("wget", 1, "downloads the corpus"),
            *AN4,
            *SPEED,
        ),
    ),
    "mini_an4": Recipe("a few utterances of AN4", "comes with the recipe", (*EVERYWHERE, *AN4)),
    # Neither fails without sclite: errors are counted by programs of ours.
    "asru": Recipe(
        "ASRU 2019, Mandarin-English",
        "--corpus of its run.sh, or ASRU in db.sh: the folder of the corpus",
        (PERL, *SPEED),
        own="egs/asru/asr1/run.sh",
    ),
    "so762": Recipe(
        "an hour of speechocean762",
        "--corpus of its run.sh, or SO762 in db.sh: the folder of its tables",
        (PERL,),
        own="egs/so762/asr1/run.sh",
    ),
    "se/enh1": Recipe(
        "speech enhancement as in the paper: LibriSpeech and sets of noise, or so762",
        "--corpus and --noises of its run.sh, or SE_CORPUS and SE_NOISES in db.sh",
        (PERL,),
        own="egs/se/enh1/run.sh",
    ),
    "vctk_noisy/enh1": Recipe(
        "VoiceBank-DEMAND, speech enhancement",
        "NOISY_SPEECH in db.sh: the folder of its four folders",
        (PERL,),
    ),
}


@dataclass(frozen=True)
class Missing:
    """A program that a recipe calls and that is not here, with the ways to get it."""

    program: str
    stage: int
    purpose: str
    debian: str
    otherwise: str

    def __str__(self) -> str:
        return (
            f"{self.program} is not here, and stage {self.stage} will fail where it needs it: "
            f"{self.purpose}. Debian: apt install {self.debian}. {self.otherwise}."
        )


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``recipes`` and its actions to the command line."""
    parser = subparsers.add_parser(
        "recipes",
        help="get the stock recipes of ESPnet",
        description="The recipes that our configurations are for, and working copies of them.",
        epilog=(
            "examples:\n"
            "  espnet-bimamba recipes list\n"
            "  espnet-bimamba recipes get librispeech_100 --to ~/recipes"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    list_parser = actions.add_parser(
        "list",
        help="the recipes that our configurations are for",
        description="Lists them, where each looks for its corpus, and what it would miss here.",
        epilog="examples:\n  espnet-bimamba recipes list\n  espnet-bimamba recipes list --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    get_parser = actions.add_parser(
        "get",
        help="make a working copy of a stock recipe",
        description=(
            "Says which programs the recipe will need and are not here, fetches the recipes of\n"
            "the installed ESPnet once (36 MB, by pip), makes a working copy of one and prints\n"
            "its folder. The copy consists of links, but for what ESPnet asks you to edit:\n"
            f"{', '.join(recipes.EDITED)}. A file of yours stays when you call this again."
        ),
        epilog=(
            "examples:\n"
            "  espnet-bimamba recipes get librispeech_100\n"
            '  cd "$(espnet-bimamba recipes get an4 --to ~/recipes)" && ./run.sh --ngpu 1\n'
            "  espnet-bimamba recipes get librispeech_100/esp2_asr    (an ESPnet3 recipe)\n"
            "  espnet-bimamba recipes get new --own egs/new/asr1      (one that ESPnet lacks)\n"
            "\n"
            "In a clone of espnet-bimamba, run.sh of egs/NAME does this by itself."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    get_parser.add_argument(
        "name", metavar="NAME", help="see `recipes list`; any other of ESPnet's works as well"
    )
    get_parser.add_argument(
        "--to",
        type=Path,
        metavar="DIR",
        help="where the copy goes, a path without whitespace (default: exp/NAME)",
    )
    get_parser.add_argument(
        "--own",
        type=Path,
        metavar="DIR",
        help="folder of a recipe that ESPnet lacks: the copy has its files over ESPnet's template",
    )
    for action, run in ((list_parser, run_list), (get_parser, run_get)):
        action.add_argument(
            "--cache",
            type=Path,
            default=user_cache(),
            metavar="DIR",
            help="where the recipes are kept, or espnet-VERSION.tar.gz lies (default: %(default)s)",
        )
        action.add_argument("--json", action="store_true", help="print JSON, for scripts")
        action.set_defaults(run=run)


def run_list(args: argparse.Namespace) -> int:
    """Print the known recipes and what each would miss here."""
    tree = _tree(args.cache)
    absent = {name: [program.program for program in missing(name, tree)] for name in RECIPES}
    if args.json:
        rows = [
            {
                "name": name,
                "corpus": recipe.corpus,
                "where": recipe.where,
                "own": recipe.own,
                "missing": absent[name],
            }
            for name, recipe in RECIPES.items()
        ]
        print(json.dumps(rows, indent=2))
        return 0
    width = max(map(len, RECIPES))
    for name, recipe in RECIPES.items():
        ours = f" (ESPnet has no such recipe: in a clone, {recipe.own})" if recipe.own else ""
        print(f"{name:{width}} {recipe.corpus}{ours}")
        print(f"{'':{width}} corpus: {recipe.where}")
        print(f"{'':{width}} missing here: {', '.join(absent[name]) or 'nothing'}")
    return 0


def run_get(args: argparse.Namespace) -> int:
    """Check the programs, make the working copy and print its folder.

    Raises:
        RecipeError: There is no such recipe, or the copy cannot be made.
    """
    name, path = _split(args.name)
    known = RECIPES.get(name)
    if known and known.own and not args.own:
        raise RecipeError(
            f"ESPnet has no recipe {name!r}: it is one of ours, and comes with a clone only",
            f"run {known.own} in a clone of espnet-bimamba, which makes the working copy itself",
        )
    absent = warn_of_missing(name, args.cache)
    root = args.to or Path("exp") / path.partition("/")[0]
    tree = recipes.prepare(args.cache)
    if args.own:
        work = recipes.link_own(tree, args.own, path, root)
    else:
        work = recipes.link(tree, path, root)
    if args.json:
        report = {
            "recipe": path,
            "espnet": recipes.installed_version(),
            "path": str(work),
            "missing": [asdict(program) for program in absent],
        }
        print(json.dumps(report, indent=2))
        return 0
    print(work)
    return 0


def warn_of_missing(name: str, cache: Path) -> list[Missing]:
    """Say on stderr which programs a recipe will miss; return them."""
    if name not in RECIPES:
        print(f"note: which programs {name} needs is not known here", file=sys.stderr)
        return []
    absent = missing(name, _tree(cache))
    for program in absent:
        print(f"warning: {program}", file=sys.stderr)
    needed = [need.program for need in RECIPES[name].needs]
    for stand_in in STAND_INS:
        if stand_in in needed and shutil.which(stand_in) is None:
            print(f"note: {stand_in} is not here; the recipe gets a stand-in", file=sys.stderr)
    return absent


def missing(name: str, tree: Path) -> list[Missing]:
    """The programs that a recipe calls and that are neither here nor in its tools.

    Args:
        name: A key of :data:`RECIPES`; of an unknown recipe nothing is known to be missing.
        tree: The recipe tree, which need not be there yet.
    """
    recipe = RECIPES.get(name)
    needs = recipe.needs if recipe else ()
    return [
        Missing(need.program, need.stage, need.purpose, *PACKAGES[need.program])
        for need in sorted(needs, key=lambda need: need.stage)
        if need.program not in STAND_INS and not _is_here(need.program, tree)
    ]


def _is_here(program: str, tree: Path) -> bool:
    if program == "sclite" and recipes.find_sclite(tree):
        return True
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), str(recipes.DEBIAN_SCTK)])
    return shutil.which(program, path=path) is not None


def _tree(cache: Path) -> Path:
    return cache.absolute() / f"espnet-{recipes.installed_version()}"


def _split(name: str) -> tuple[str, str]:
    """Name in :data:`RECIPES`, were it there, and path below ``egs2`` or ``egs3``."""
    corpus, _, task = name.strip("/").partition("/")
    if not corpus or ".." in (corpus, *task.split("/")):
        raise RecipeError(f"NAME={name!r} names no recipe", f"take one of {', '.join(RECIPES)}")
    known = corpus if task in ("", "asr1") else f"{corpus}/{task}"
    return known, f"{corpus}/{task or 'asr1'}"
