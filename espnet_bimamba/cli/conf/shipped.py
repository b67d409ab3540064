"""The YAMLs that the package ships: where they lie, and what their first lines say.

A YAML that reproduces a row of the paper begins with comments of this form, which a test compares
with the model that the YAML builds and with the stock file that it names::

    # Paper: Table 8, LibriSpeech-100, Conformer "- MHSA + ExtBiMamba"
    # Stock: librispeech_100/asr1/conf/train_asr.yaml
    # Parameters: 40.79 M with 5000 tokens, paper 41.59 M

The second may go on with ``; encoder: seame/asr1/conf/train.yaml``, the third may end with ``paper
prints none``; a network of speech enhancement has no tokens. Where ESPnet has no such file, the
second line is a mere comment, ``# Follows: ...``.
"""

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import yaml

from espnet_bimamba.cli.conf.files import items, read
from espnet_bimamba.errors import ConfigError, OptionError

#: What a training YAML's name begins with, the ESPnet2 and the ESPnet3 way.
PREFIXES = ("train_asr_", "train_enh_", "training_")
#: In the line of the parameters: of how many tokens the vocabulary is.
TOKENS = re.compile(r"^# Parameters:.*?\b(\d[\d,]*) tokens\b", re.MULTILINE)
#: An ESPnet3 YAML has it below ``model:``.
ENCODER = re.compile(r"^(?:  )?encoder: (\w+)$", re.MULTILINE)
#: A YAML of `enh_s2t` has both, and is listed by its separator.
SEPARATOR = re.compile(r"^(?:enh_)?separator: (\w+)$", re.MULTILINE)
PAPER = re.compile(r"^# Paper: (.+)$", re.MULTILINE)
STOCK = re.compile(r"^# Stock: ([^\s;]+)(?:; encoder: (\S+))?$", re.MULTILINE)
PARAMETERS = re.compile(
    r"^# Parameters: ([\d.]+) M(?: with \d+ tokens)?, paper (?:([\d.]+) M|prints none)$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Shipped:
    """One YAML of the package.

    Attributes:
        name: ``recipe/model`` of a training YAML, ``recipe/decode_asr`` of a decoding one;
            ``recipe/espnet3/model`` and ``recipe/espnet3/inference`` of ESPnet3's.
        path: The file.
        encoder: The encoder that it names, of speech enhancement the separator; None in a decoding
            YAML.
        paper: Table and row; None in a YAML that the paper has nothing to do with.
        stock: The file of ESPnet that it follows, as a path in ``egs2``, or one that begins with
            ``egs3``; None if it follows none.
        stock_encoder: The file of ESPnet whose encoder it follows instead of that of ``stock``.
        parameters: Of the model, in millions.
        paper_parameters: What the paper prints, in millions.
    """

    name: str
    path: Path
    encoder: str | None
    paper: str | None
    stock: str | None
    stock_encoder: str | None
    parameters: float | None
    paper_parameters: float | None


def folder() -> Path:
    """Folder of the YAMLs: in the package, or beside it in an editable install.

    Raises:
        ConfigError: It is in neither place.
    """
    package = Path(__file__).resolve().parents[2]
    for path in (package / "conf", package.parent / "conf"):
        if path.is_dir():
            return path
    raise ConfigError(package / "conf", "is missing: install espnet-bimamba again")


def shipped() -> list[Shipped]:
    """Return all YAMLs: of a recipe the training YAMLs first, ESPnet3's last."""
    root = folder()

    def order(path: Path) -> tuple[Path, bool]:
        return path.relative_to(root).parent, not path.name.startswith(PREFIXES)

    return [describe(path, root) for path in sorted(sorted(root.rglob("*.yaml")), key=order)]


def describe(path: Path, root: Path) -> Shipped:
    """Return what a YAML says of itself, read line by line: parsing all of them takes a second.

    Args:
        path: The YAML.
        root: The folder of all of them.
    """
    text = read(path)
    paper, stock, parameters = (line.search(text) for line in (PAPER, STOCK, PARAMETERS))
    encoder = SEPARATOR.search(text) or ENCODER.search(text)
    return Shipped(
        name=path.relative_to(root).with_name(_model(path)).as_posix(),
        path=path,
        encoder=encoder[1] if encoder else None,
        paper=paper[1] if paper else None,
        stock=stock[1] if stock else None,
        stock_encoder=stock[2] if stock else None,
        parameters=float(parameters[1]) if parameters else None,
        paper_parameters=float(parameters[2]) if parameters and parameters[2] else None,
    )


def stated_tokens(text: str) -> int | None:
    """Return for how many tokens a YAML states its parameters, or None if it does not say."""
    stated = TOKENS.search(text)
    return int(stated[1].replace(",", "")) if stated else None


def _model(path: Path) -> str:
    prefix = next((prefix for prefix in PREFIXES if path.stem.startswith(prefix)), "")
    return path.stem.removeprefix(prefix)


def find(name: str, allowed: str = "a name that `espnet-bimamba conf list` prints") -> Shipped:
    """Return the YAML of that name.

    Args:
        name: As ``conf list`` prints it.
        allowed: What the user may write in its place, in words.

    Raises:
        OptionError: There is none; the message names the nearest.
    """
    files = {file.name: file for file in shipped()}
    if name in files:
        return files[name]
    near = _near(name, files)
    hint = f"Did you mean {' or '.join(near)}?" if near else ""
    raise OptionError("NAME", name, allowed, hint)


def _near(name: str, names: Collection[str]) -> list[str]:
    """Return the names that somebody may have meant: of this model, else of one like it."""
    models = {each: each.rpartition("/")[2] for each in names}
    model = name.rpartition("/")[2]
    meant = [model] if model in models.values() else []
    # By the model alone: most names of a recipe are alike, whatever model is asked for.
    meant = meant or difflib.get_close_matches(model, {*models.values()}, n=9, cutoff=0.7)
    alike = [each for each in names if models[each] in meant]
    return difflib.get_close_matches(name, alike, n=3, cutoff=0)


def locate(text: str) -> Path:
    """Return the YAML that a user speaks of, by its path or by the name of one of ours.

    Raises:
        OptionError: It is neither.
    """
    path = Path(text)
    if path.suffix in (".yaml", ".yml") or path.exists():
        return path
    return find(text, "a file, or a name that `espnet-bimamba conf list` prints").path


def in_the_tree(stock: str) -> str:
    """Return where a stock YAML lies in the recipe tree."""
    return stock if stock.startswith("egs3/") else f"egs2/{stock}"


def stock_text(tree: Path, stock: str, stock_encoder: str | None = None) -> str:
    """Return a stock YAML, with the encoder of another one if that is named.

    Args:
        tree: What :func:`espnet_bimamba.recipes.prepare` returned.
        stock: The YAML, as :class:`Shipped` has it.
        stock_encoder: Likewise, the YAML whose ``encoder`` and ``encoder_conf`` it gets.

    Raises:
        ConfigError: The installed ESPnet has it no longer.
    """
    text = read(tree / in_the_tree(stock))
    if stock_encoder is None:
        return text
    return _with_encoder(text, read(tree / in_the_tree(stock_encoder)))


def _with_encoder(text: str, other: str) -> str:
    """Put the lines of ``other``'s encoder where ``text`` has its own."""
    lines, others = (yaml_text.splitlines(keepends=True) for yaml_text in (text, other))
    lines[_encoder_lines(text)] = others[_encoder_lines(other)]
    return "".join(lines)


def _encoder_lines(text: str) -> slice:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    [(first, _)], [(_, last)] = items(root, "encoder"), items(root, "encoder_conf")
    return slice(first.start_mark.line, last.end_mark.line)


def settings(text: str) -> str:
    """Return the lines of a YAML without comments, and without blank lines before the first.

    For the package's YAMLs and ESPnet's, in none of which a value holds a ``#``.
    """
    lines = [re.sub(r"(^|\s+)#.*", "", line) for line in text.splitlines() if line[:1] != "#"]
    return "\n".join(lines).strip("\n") + "\n"
