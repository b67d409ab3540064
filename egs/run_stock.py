"""Runs ESPnet's own, unchanged recipe with one of our models, in a working copy of it.

What is not listed below goes to ESPnet's run.sh as it is, for example ``--stage 10 --ngpu 2``;
Training takes one GPU, of mini_an4 none: say ``--ngpu N`` for another number.
``--stage`` counts as ESPnet does: 1-5 prepare data, 10 collects statistics, 11 trains, 12
decodes, 13 scores, 14 packs (with ``--skip_packing false``; SEAME's run.sh stops at 13 unless
``--stop_stage`` says otherwise). Decoding uses no language model unless you say ``--use_lm
true``. Several models share one working copy and its data: prepare the data with the first, and
begin with ``--stage 10`` for the others.

Of speech enhancement (vctk_noisy), 1-4 prepare data, 5 collects statistics, 6 trains, 7 enhances,
8 scores, 11 packs.
"""

import argparse
import importlib.util
import itertools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from espnet_bimamba import recipes
from espnet_bimamba.cli.conf.files import parse, read
from espnet_bimamba.cli.params import REMEDIES
from espnet_bimamba.cli.recipes import warn_of_missing
from espnet_bimamba.errors import BiMambaError, OptionError, RecipeError
from espnet_bimamba.files import draft_of, write_whole

HOME = Path(__file__).resolve().parents[1]

#: What asr.sh decodes with if the training YAML names no criterion.
USUAL_MODEL = "valid.acc.ave.pth"


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
        holds: What ESPnet reads below ``--corpus``.
        tell: Tells a working copy where the corpus lies, or None where it comes with the recipe.
        before: What has to happen before ``run.sh``; may run a stage itself, and returns the
            options that are left.
    """

    task: str = "asr1"
    model: str = "conextbimamba"
    baselines: dict[str, str] = field(default_factory=dict)
    ngpu: int = 1
    options: tuple[str, ...] = ()
    without_lm: tuple[str, ...] = ("--use_lm", "false")
    holds: tuple[str, ...] = ()
    tell: Callable[[Path, Path], None] | None = None
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
        model = args.model or stock.model
        config = training_yaml(args.recipe, model)
        mine = _own_yaml(stock, options)
        for name in ("--stage", "--stop_stage"):
            _stage(options, name, usual=1)
        if args.corpus:
            _check_corpus(args.recipe, args.corpus)
        warn_of_missing(args.recipe if stock.task == "asr1" else _path(args.recipe), args.cache)
        work = _working_copy(args)
        if args.corpus and stock.tell:
            stock.tell(work, args.corpus.absolute())
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
            given += _decoding(args.recipe, stock, model, options)
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
    parser = argparse.ArgumentParser(
        prog="run.sh",
        description=__doc__,
        usage="%(prog)s [--model MODEL] [--corpus DIR] [options of ESPnet's run.sh]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", choices=RECIPES, help=argparse.SUPPRESS)
    parser.add_argument(
        "--model",
        help="of conf/RECIPE/train_*_MODEL.yaml, or a baseline that ESPnet has (default: "
        "conextbimamba; of mini_an4 conbimamba, of vctk_noisy extbimamba3)",
    )
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="where the corpus lies")
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="the working copy (default: exp/RECIPE)"
    )
    parser.add_argument(
        "--cache", type=Path, default=HOME / ".cache", help="where stock recipes are kept"
    )
    args, options = parser.parse_known_args(argv)
    if len(options) % 2 and options[-1].startswith("--"):
        parser.error(f"option '{options[-1]}' needs a value")
    return args, options


def training_yaml(recipe: str, model: str) -> str:
    """Path of the model's YAML: ours absolute, ESPnet's below its recipe.

    Raises:
        OptionError: There is no such model.
    """
    stock = RECIPES.get(recipe, Stock())
    folder = HOME / "conf" / recipe
    prefix = f"train_{stock.kind}_"
    ours = folder / f"{prefix}{model}.yaml"
    if ours.is_file():
        return str(ours)
    if model in stock.baselines:
        return f"conf/{stock.baselines[model]}"
    names = {path.stem.removeprefix(prefix) for path in folder.glob(f"{prefix}*.yaml")}
    known = ", ".join(sorted(names | set(stock.baselines)))
    raise OptionError("--model", model, known)


def _working_copy(args: argparse.Namespace) -> Path:
    root = args.work or HOME / "exp" / args.recipe
    return recipes.link(recipes.prepare(args.cache), _path(args.recipe), root)


def _path(recipe: str) -> str:
    """Path of a recipe below ``egs2``."""
    return f"{recipe}/{RECIPES[recipe].task}"


def _check_corpus(recipe: str, corpus: Path) -> None:
    """Refuses a folder that ESPnet would fail on, or would download a corpus into."""
    holds, folder = RECIPES[recipe].holds, corpus.absolute()
    if not holds:
        raise OptionError("--corpus", str(corpus), f"none: {recipe} brings its corpus")
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
    return _seame_first(work, options)


def _score_mixed(work: Path) -> None:
    """Adds to SEAME's own scoring what it lacks: it counts Mandarin and English apart.

    asr.sh calls that script with the experiment of the run, so only ESPnet has to know what it is
    called. A script that is no link is the user's, or ours from an earlier call.
    """
    script = Path("local") / "score.sh"
    if (work / script).is_symlink():
        with draft_of(work / script) as draft:
            shutil.copy(HOME / "egs/seame/asr1" / script, draft)


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

#: Without the first ESPnet would download all parts.
LIBRISPEECH_100 = (
    "LibriSpeech/LICENSE.TXT",
    "LibriSpeech/SPEAKERS.TXT",
    "LibriSpeech/dev-clean",
    "LibriSpeech/test-clean",
    "LibriSpeech/dev-other",
    "LibriSpeech/test-other",
    "LibriSpeech/train-clean-100",
)
LIBRISPEECH_960 = (
    *LIBRISPEECH_100,
    "LibriSpeech/train-clean-360",
    "LibriSpeech/train-other-500",
)
SEAME = (
    "conversation/audio",
    "conversation/transcript/phaseII",
    "interview/audio",
    "interview/transcript/phaseII",
)
AN4 = (
    "README",
    "etc/an4_train.transcription",
    "etc/an4_test.transcription",
    "wav/an4_clstk",
    "wav/an4test_clstk",
)
NOISY_SPEECH = (
    "clean_trainset_28spk_wav",
    "noisy_trainset_28spk_wav",
    "clean_testset_wav",
    "noisy_testset_wav",
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
        holds=LIBRISPEECH_100,
        tell=_in_db_sh("LIBRISPEECH"),
    ),
    "librispeech": Stock(
        baselines={
            "conformer": "tuning/train_asr_conformer10_hop_length160.yaml",
            "transformer": "tuning/train_asr_transformer3.yaml",
            "branchformer": "tuning/train_asr_branchformer_hop_length160_e18_linear3072.yaml",
            "e_branchformer": "tuning/train_asr_e_branchformer.yaml",
        },
        without_lm=(*NO_LM_TEXT, "--lm_train_text", "data/train_960/text"),
        holds=LIBRISPEECH_960,
        tell=_in_db_sh("LIBRISPEECH"),
    ),
    "seame": Stock(
        baselines={"conformer": "tuning/train_asr_conformer.yaml"},
        holds=SEAME,
        tell=_in_db_sh("SEAME"),
        before=_seame,
    ),
    "an4": Stock(
        baselines={"transformer": "train_asr_transformer.yaml"},
        holds=AN4,
        tell=_below_downloads("an4"),
    ),
    # Its YAMLs are made to memorise a few utterances in a minute, without a GPU.
    "mini_an4": Stock(
        model="conbimamba",
        ngpu=0,
        options=("--skip_packing", "false", "--test_sets", "train_dev test"),
    ),
    "vctk_noisy": Stock(
        task="enh1", model="extbimamba3", holds=NOISY_SPEECH, tell=_in_db_sh("NOISY_SPEECH")
    ),
}


if __name__ == "__main__":
    sys.exit(main())
