"""Runs ESPnet's own, unchanged recipe with one of our models, in a working copy of it.

Each of its recipes has a run.sh, which calls this with the recipe's name before all options; what
``--help`` says is about that recipe alone.
"""

import argparse
import importlib.util
import itertools
import os
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from espnet_bimamba import recipes
from espnet_bimamba.cli.conf.files import parse, read
from espnet_bimamba.cli.params import REMEDIES
from espnet_bimamba.cli.recipes import warn_of_missing
from espnet_bimamba.errors import BiMambaError, OptionError, RecipeError
from espnet_bimamba.files import write_whole

HOME = Path(__file__).resolve().parents[1]

#: What asr.sh decodes with if the training YAML names no criterion.
USUAL_MODEL = "valid.acc.ave.pth"


@dataclass(frozen=True)
class Corpus:
    """A corpus that does not come with its recipe.

    Attributes:
        holds: What ESPnet reads below its folder.
        tell: Tells a working copy where that folder is.
        words: The folder, and where ESPnet looks without ``--corpus``, as the help puts it.
    """

    holds: tuple[str, ...]
    tell: Callable[[Path, Path], None]
    words: str


@dataclass(frozen=True)
class Stock:
    """A stock recipe, and what our runs of it differ in.

    Attributes:
        task: ESPnet's name of the recipe's folder.
        model: The model that is run if none is named.
        baselines: Name of a model -> ESPnet's own YAML for it, in the recipe's ``conf``.
        ngpu: GPUs that are asked for: each recipe of ESPnet asks for its own number.
        options: What comes before the user's options.
        without_lm: What comes before them too, unless the user asks for a language model.
        corpus: What ``--corpus`` is, or None where the corpus comes with the recipe.
        packing: What the help says of the last stage, after "packs".
        before: What has to happen before ``run.sh``; may run a stage itself, and returns the
            options that are left.
    """

    task: str = "asr1"
    model: str = "conextbimamba"
    baselines: dict[str, str] = field(default_factory=dict)
    ngpu: int = 1
    options: tuple[str, ...] = ()
    without_lm: tuple[str, ...] = ("--use_lm", "false")
    corpus: Corpus | None = None
    packing: str = " (with --skip_packing false)"
    before: Callable[[Path, list[str]], list[str] | None] | None = None

    @property
    def kind(self) -> str:
        """What a training YAML is of: ``asr`` or ``enh``."""
        return self.task.rstrip("1")


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the working copy and becomes its run.sh.

    Returns:
        The exit code, if the script does not start.
    """
    args, options = _parse(argv)
    stock = RECIPES[args.recipe]
    try:
        config = training_yaml(args.recipe, args.model)
        mine = _own_yaml(stock, options)
        for name in ("--stage", "--stop_stage"):
            _stage(options, name, usual=1)
        if args.corpus:
            _check_corpus(args.recipe, args.corpus)
        warn_of_missing(args.recipe if stock.task == "asr1" else _path(args.recipe), args.cache)
        work = _working_copy(args)
        if args.corpus and stock.corpus:
            stock.corpus.tell(work, args.corpus.absolute())
        os.chdir(work)
        given = [
            f"--{stock.kind}_config",
            mine or config,
            "--ngpu",
            str(stock.ngpu),
            *stock.options,
        ]
        if stock.kind == "asr":
            given += ["--inference_asr_model", _best_model(Path(mine or config))]
            given += _decoding(args.recipe, stock, args.model, options)
        given += _without_own_yaml(stock, options)
        _warn_of_transducer(given)
        rest = stock.before(work, given) if stock.before else given
    except BiMambaError as error:
        print(f"{args.recipe}: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        return error.returncode
    if rest is None:
        return 0
    sys.stdout.flush()
    os.execv("./run.sh", ["./run.sh", *rest])
    return 0


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    words = list(sys.argv[1:] if argv is None else argv)
    first = argparse.ArgumentParser(description=__doc__)
    first.formatter_class = argparse.RawDescriptionHelpFormatter
    first.add_argument("recipe", choices=RECIPES)
    recipe = first.parse_args(words[:1]).recipe
    parser = _parser(recipe)
    args, options = parser.parse_known_args(words[1:], argparse.Namespace(recipe=recipe))
    if len(options) % 2 and options[-1].startswith("--"):
        parser.error(f"option '{options[-1]}' needs a value")
    return args, options


def _parser(recipe: str) -> argparse.ArgumentParser:
    stock = RECIPES[recipe]
    parser = argparse.ArgumentParser(
        prog=f"egs/{_path(recipe)}/run.sh",
        description=_description(recipe),
        usage="%(prog)s [--model MODEL] [--corpus DIR] [options of ESPnet's run.sh]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    models = f"one of {', '.join(_ours(recipe))}"
    if stock.baselines:
        models += f"; or with ESPnet's own YAML {', '.join(sorted(stock.baselines))}"
    parser.add_argument("--model", default=stock.model, help=f"{models} (default: %(default)s)")
    words = stock.corpus.words if stock.corpus else "not possible: the recipe brings its corpus"
    parser.add_argument("--corpus", type=Path, metavar="DIR", help=words)
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        default=HOME / "exp" / recipe,
        help="the working copy, a path without whitespace (default: %(default)s)",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        default=HOME / ".cache",
        help="where stock recipes are kept (default: %(default)s)",
    )
    return parser


def _description(recipe: str) -> str:
    stock = RECIPES[recipe]
    gpus = "on one GPU (--ngpu 1)" if stock.ngpu else "without a GPU (--ngpu 0)"
    if stock.kind == "asr":
        stages = (
            f"10 collects statistics, 11 trains, 12 decodes, 13 scores, 14 packs{stock.packing}"
        )
        stages, begin = f"1-5 prepare data, {stages}", 10
        decodes = " and decodes without a language model (--use_lm false)"
    else:
        stages = "1-4 prepare data, 5 collects statistics, 6 trains, 7 enhances, 8 scores, 11 packs"
        stages, begin, decodes = f"{stages}{stock.packing}", 5, ""
    paragraphs = (
        f"Runs ESPnet's own, unchanged recipe {_path(recipe)} with one of our models, in a working "
        "copy of it.",
        f"What is not listed below goes to ESPnet's run.sh as it is, for example --stage {begin} "
        f"--nj 8. A --{stock.kind}_config of yours, looked for where you are, takes the place of "
        "the model's.",
        f"--stage counts as ESPnet does: {stages}.",
        f"It trains {gpus}{decodes} unless you say otherwise; several GPUs share each batch.",
        "Several models share one working copy and its data: prepare the data with the first, and "
        f"begin with --stage {begin} for the others.",
    )
    return "\n\n".join(textwrap.fill(paragraph, width=100) for paragraph in paragraphs)


def training_yaml(recipe: str, model: str) -> str:
    """Path of the model's YAML: ours absolute, ESPnet's below its recipe.

    Raises:
        OptionError: There is no such model.
    """
    stock = RECIPES.get(recipe, Stock())
    ours = HOME / "conf" / recipe / f"train_{stock.kind}_{model}.yaml"
    if ours.is_file():
        return str(ours)
    if model in stock.baselines:
        return f"conf/{stock.baselines[model]}"
    raise OptionError("--model", model, ", ".join(sorted({*_ours(recipe), *stock.baselines})))


def _ours(recipe: str) -> list[str]:
    """Names of our models for a recipe."""
    prefix = f"train_{RECIPES.get(recipe, Stock()).kind}_"
    files = (HOME / "conf" / recipe).glob(f"{prefix}*.yaml")
    return sorted(file.stem.removeprefix(prefix) for file in files)


def _working_copy(args: argparse.Namespace) -> Path:
    return recipes.link(recipes.prepare(args.cache), _path(args.recipe), args.work)


def _path(recipe: str) -> str:
    """Path of a recipe below ``egs2``."""
    return f"{recipe}/{RECIPES[recipe].task}"


def _check_corpus(recipe: str, corpus: Path) -> None:
    """Refuses a folder that ESPnet would fail on, or would download a corpus into."""
    known, folder = RECIPES[recipe].corpus, corpus.absolute()
    if known is None:
        raise OptionError("--corpus", str(corpus), f"none: {recipe} brings its corpus")
    holds = known.holds
    absent = [name for name in holds if not (folder / name).exists()]
    if not absent:
        return
    if all((folder.parent / name).exists() for name in holds):
        raise OptionError("--corpus", str(corpus), f"the folder above it, {folder.parent}")
    allowed = f"a folder that holds {', '.join(holds)}"
    raise OptionError("--corpus", str(corpus), allowed, f"Not there: {', '.join(absent)}.")


def _own_yaml(stock: Stock, options: Sequence[str]) -> str | None:
    """Absolute path of the training YAML that the user names: ESPnet runs in another folder."""
    name = f"--{stock.kind}_config"
    given = _value(options, name)
    if given is None:
        return None
    path = Path(given).absolute()
    if not path.is_file():
        raise OptionError(name, given, f"a file, looked for in {Path.cwd()}")
    parse(read(path), path)
    return str(path)


def _without_own_yaml(stock: Stock, options: Sequence[str]) -> list[str]:
    pairs = itertools.batched(options, 2)
    return [word for pair in pairs if pair[0] != f"--{stock.kind}_config" for word in pair]


def _best_model(config: Path) -> str:
    """The average to decode with: of the first criterion by which the training keeps models."""
    criteria = parse(read(config), config).get("best_model_criterion")
    if not criteria:
        return USUAL_MODEL
    part, measure = criteria[0][:2]
    return f"{part}.{measure}.ave.pth"


def _warn_of_transducer(options: list[str]) -> None:
    """Says what the model will be built with, which ESPnet asks for after all data are prepared."""
    config = Path(_value(options, "--asr_config") or "")
    training = parse(read(config), config) if config.is_file() else {}
    of_espnet = (training.get("model_conf") or {}).get("transducer_multi_blank_durations")
    if training.get("decoder") != "transducer" or of_espnet:
        return
    if importlib.util.find_spec("warprnnt_pytorch") is None:
        print(
            "warning: warprnnt_pytorch is not here, and stages 10 to 12 will fail without it: "
            f"{REMEDIES['warprnnt_pytorch']}.",
            file=sys.stderr,
        )


def _decoding(recipe: str, stock: Stock, model: str, options: list[str]) -> list[str]:
    """Without a language model, unless the user wants one: then ESPnet's own YAML has its weight.

    ``decode_asr_KIND.yaml`` is for the models whose name ends with KIND, as ``_ctc`` does; that of
    ``streaming`` is read by another program.
    """
    if _value(options, "--use_lm") == "true":
        return []
    folder = HOME / "conf" / recipe
    special = {path.stem.removeprefix("decode_asr_"): path for path in folder.glob("decode_asr_*")}
    endings = [kind for kind in special if model.endswith(kind)]
    config = special[max(endings, key=len)] if endings else folder / "decode_asr.yaml"
    program = ("--use_streaming", "true") if "streaming" in endings else ()
    return [*stock.without_lm, *program, "--inference_config", str(config)]


def _value(options: Sequence[str], name: str) -> str | None:
    """What an option is in the end: ESPnet takes the last that is given."""
    return next((b for a, b in reversed(list(itertools.pairwise(options))) if a == name), None)


def _in_db_sh(variable: str) -> Callable[[Path, Path], None]:
    """A setter of a variable of db.sh."""

    def tell(work: Path, corpus: Path) -> None:
        db = work / "db.sh"
        line = f"{variable}={shlex.quote(str(corpus))}\n"
        text = db.read_text()
        if text.endswith(f"\n{line}"):
            return
        write_whole(db, f"{text.rstrip()}\n{line}")

    return tell


def _below_downloads(name: str) -> Callable[[Path, Path], None]:
    def tell(work: Path, corpus: Path) -> None:
        link = work / "downloads" / name
        link.parent.mkdir(exist_ok=True)
        if link.exists() and not link.is_symlink():
            raise RecipeError(f"{link} is there already", "delete it, or leave --corpus out")
        link.unlink(missing_ok=True)
        link.symlink_to(corpus)

    return tell


def _seame(work: Path, options: list[str]) -> list[str] | None:
    _score_mixed(work)
    return _seame_first(work, [*options, *_references(options)])


def _score_mixed(work: Path) -> None:
    """Adds to SEAME's own scoring what it lacks: it counts Mandarin and English apart.

    asr.sh calls that script with the experiment of the run, so only ESPnet has to know what it is
    called. A script that is no link is the user's.
    """
    script, ours = work / "local" / "score.sh", HOME / "egs/seame/asr1/local/score.sh"
    if script.is_symlink() and script.readlink() != ours:
        script.rename(script.with_name("score_stock.sh"))
        script.symlink_to(ours)


def _references(options: Sequence[str]) -> list[str]:
    """Tells our scoring where asr.sh keeps its data, if that is not where it does by default."""
    places = {"--dumpdir": "dump", "--feats_type": "raw"}
    dump = "/".join(_value(options, name) or usual for name, usual in places.items())
    if dump == "dump/raw" or _value(options, "--local_score_opts"):
        return []
    return ["--local_score_opts", f"--dump {dump}"]


def _seame_first(work: Path, options: list[str]) -> list[str] | None:
    """Runs stage 1 itself, since SEAME's run.sh cannot.

    Before anything else it calls ``./asr.sh --stage 1 --stop_stage 1``, which asr.sh refuses
    for want of ``--train_set``, and which knows none of the user's options either.
    """
    if (work / "data" / "train" / "token.man.2").is_file():
        return options
    if _stage(options, "--stage", usual=1) > 1:
        raise RecipeError(f"{work}/data/train/token.man.2 is not there", "run --stage 1 first")
    sets = ["--train_set", "train", "--valid_set", "valid", "--test_sets", "devman devsge"]
    subprocess.run(
        ["./asr.sh", *sets, *options, "--stage", "1", "--stop_stage", "1"], cwd=work, check=True
    )
    if _stage(options, "--stop_stage", usual=13) == 1:
        return None
    return [*options, "--stage", "2"]


def _stage(options: list[str], name: str, usual: int) -> int:
    value = _value(options, name) or str(usual)
    if not value.isdecimal():
        raise OptionError(name, value, "the number of a stage")
    return int(value)


#: Stage 1 ends with a download of 1.5 GB of text, and stage 4 reads it, for a language model only.
NO_LM_TEXT = ("--use_lm", "false", "--local_data_opts", "--stop_stage 3")

#: Parts of LibriSpeech, of 100 hours and the rest of 960.
PARTS = ("dev-clean", "test-clean", "dev-other", "test-other", "train-clean-100")
MORE_PARTS = ("train-clean-360", "train-other-500")


def _librispeech(*parts: str) -> Corpus:
    # Without the licence ESPnet would download all parts.
    names = ("LICENSE.TXT", "SPEAKERS.TXT", *parts)
    return Corpus(
        holds=tuple(f"LibriSpeech/{name}" for name in names),
        tell=_in_db_sh("LIBRISPEECH"),
        words="the folder above LibriSpeech/, which the working copy remembers; without it ESPnet "
        "looks where LIBRISPEECH in the copy's db.sh says, at first in the copy's folder "
        "downloads, and downloads the corpus to there if LibriSpeech/LICENSE.TXT is not there (a "
        "folder that does not exist you have to make)",
    )


SEAME = Corpus(
    holds=(
        "conversation/audio",
        "conversation/transcript/phaseII",
        "interview/audio",
        "interview/transcript/phaseII",
    ),
    tell=_in_db_sh("SEAME"),
    words="the folder of conversation/ and interview/, each with audio/ and transcript/phaseII/, "
    "which the working copy remembers; without it ESPnet looks where SEAME in the copy's db.sh "
    "says, and downloads no more than the lists of the test sets",
)
AN4 = Corpus(
    holds=(
        "README",
        "etc/an4_train.transcription",
        "etc/an4_test.transcription",
        "wav/an4_clstk",
        "wav/an4test_clstk",
    ),
    tell=_below_downloads("an4"),
    words="the folder of README, etc/ and wav/, which the working copy remembers as downloads/an4; "
    "without it, if nothing is there, ESPnet downloads the corpus (64 MB) to there",
)
NOISY_SPEECH = Corpus(
    holds=(
        "clean_trainset_28spk_wav",
        "noisy_trainset_28spk_wav",
        "clean_testset_wav",
        "noisy_testset_wav",
    ),
    tell=_in_db_sh("NOISY_SPEECH"),
    words="the folder of clean_trainset_28spk_wav/ and the three others of VoiceBank-DEMAND, which "
    "the working copy remembers; without it ESPnet looks where NOISY_SPEECH in the copy's db.sh "
    "says, and downloads nothing",
)

RECIPES = {
    "librispeech_100": Stock(
        baselines={
            "conformer": "tuning/train_asr_conformer_lr2e-3_warmup15k_amp_nondeterministic.yaml",
            "transformer": "tuning/train_asr_transformer_win400_hop160_ctc0.3_lr2e-3_warmup15k_"
            "timemask5_amp_no-deterministic.yaml",
            "e_branchformer": "tuning/train_asr_e_branchformer_size256_mlp1024_linear1024_e12_"
            "mactrue_edrop0.0_ddrop0.0.yaml",
            "conformer_ctc": "tuning/train_conformer_ctc.yaml",
            "conformer_interctc": "tuning/train_conformer_interctc.yaml",
            "conformer_scctc": "tuning/train_conformer_scctc.yaml",
            "conformer_transducer": "tuning/train_asr_transducer_conformer_e15_linear1024.yaml",
        },
        without_lm=NO_LM_TEXT,
        corpus=_librispeech(*PARTS),
    ),
    "librispeech": Stock(
        baselines={
            "conformer": "tuning/train_asr_conformer10_hop_length160.yaml",
            "transformer": "tuning/train_asr_transformer3.yaml",
            "branchformer": "tuning/train_asr_branchformer_hop_length160_e18_linear3072.yaml",
            "e_branchformer": "tuning/train_asr_e_branchformer.yaml",
        },
        without_lm=(*NO_LM_TEXT, "--lm_train_text", "data/train_960/text"),
        corpus=_librispeech(*PARTS, *MORE_PARTS),
    ),
    "seame": Stock(
        baselines={"conformer": "tuning/train_asr_conformer.yaml"},
        corpus=SEAME,
        packing=" (with --skip_packing false --stop_stage 14); 13 ends with the mixed error rate",
        before=_seame,
    ),
    "an4": Stock(
        baselines={"transformer": "train_asr_transformer.yaml"},
        corpus=AN4,
    ),
    # Its YAMLs are made to memorise a few utterances in a minute, without a GPU.
    "mini_an4": Stock(
        model="conbimamba",
        ngpu=0,
        packing="",
        options=("--skip_packing", "false", "--test_sets", "train_dev test"),
    ),
    "vctk_noisy": Stock(task="enh1", model="extbimamba3", corpus=NOISY_SPEECH),
}


if __name__ == "__main__":
    sys.exit(main())
