"""Writes the README of a packed model: ESPnet's form, with what it needs and how it is used."""

import contextlib
import re
import shlex
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from espnet_bimamba import __version__
from espnet_bimamba.cli.recipes import RECIPES
from espnet_bimamba.cli.zoo.archive import README, PackedModel, noted_version, one_line
from espnet_bimamba.errors import OptionError, PackedModelError
from espnet_bimamba.files import draft_of
from espnet_bimamba.registry import OLDEST_ESPNET

#: What ESPnet's template says.
LICENSE = "cc-by-4.0"
TASK = "automatic-speech-recognition"

#: ISO 639's, which the Hub knows.
CODES = re.compile(r"[a-z]{2,3}(,[a-z]{2,3})*")

CITATIONS = """\
### Citing ESPnet and the encoder

```BibTex
@inproceedings{watanabe2018espnet,
  author={Watanabe, Shinji and Hori, Takaaki and Karita, Shigeki and Hayashi, Tomoki and others},
  title={{ESPnet}: End-to-End Speech Processing Toolkit},
  booktitle={Proc. Interspeech},
  year={2018},
  doi={10.21437/Interspeech.2018-1456}
}
@article{zhang2024mamba,
  author={Zhang, Xiangyu and Zhang, Qiquan and Liu, Hexin and Xiao, Tianyi and Qian, Xinyuan
          and Ahmed, Beena and Ambikairajah, Eliathamby and Li, Haizhou and Epps, Julien},
  title={{Mamba} in Speech: Towards an Alternative to Self-Attention},
  journal={arXiv:2405.12609},
  year={2024}
}
```"""


@dataclass(frozen=True)
class Labels:
    """What the card says and no file of the archive knows; None leaves the line out.

    Attributes:
        repo: ``OWNER/NAME`` on the Hugging Face Hub.
        corpus: What it was trained on.
        language: Its code, such as ``en``, or several, with commas between them.
        license: Of the weights.
        source: URL that pip can install this package from.
    """

    repo: str | None = None
    corpus: str | None = None
    language: str | None = None
    license: str = LICENSE
    source: str | None = None

    def __post_init__(self) -> None:
        if not self.license.strip():
            allowed = f"a licence that the Hugging Face Hub knows, for example {LICENSE}"
            raise OptionError("--license", self.license, allowed)
        if self.repo is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repo):
            raise OptionError("--repo", self.repo, "OWNER/NAME of the Hugging Face Hub")
        if self.language is not None and not CODES.fullmatch(self.language):
            allowed = "a code of two or three letters, for example en, or several: zh,en"
            raise OptionError("--language", self.language, allowed)
        if self.source is not None and not _is_for_others(self.source):
            allowed = "what pip takes elsewhere too, for example git+https://HOST/espnet-bimamba"
            raise OptionError("--source", self.source, allowed)


def _is_for_others(source: str) -> bool:
    """Whether what ``pip install`` is given is more than a folder of this machine."""
    return re.match(r"['\"]?[A-Za-z]", source) is not None


def guessed_corpus(path: Path) -> str | None:
    """Return the recipe's name, where the archive lies in ``egs2/CORPUS/asr1/exp/...``."""
    recipes = [folder.name for folder in path.resolve().parents if folder.parent.name == "egs2"]
    return recipes[0] if recipes else None


def guessed_language(model: PackedModel) -> str | None:
    """Return the recipe's ``--lang``, which is part of the path of its tokens' model.

    None if that is no code of a language.
    """
    tokens = model.config.get("bpemodel")
    found = re.match(r"data/([a-z]{2,3})_token_list/", tokens) if isinstance(tokens, str) else None
    return found[1] if found else None


def render(model: PackedModel, labels: Labels) -> str:
    """Return the text of the card.

    Its sections are those of ESPnet's ``scripts/utils/TEMPLATE_HF_Readme.md``, in their order,
    with one on the requirement.

    Args:
        model: The packed model.
        labels: What the archive does not know.
    """
    results = model.named("RESULTS.md")
    sections = [
        _front(labels),
        "## ESPnet2 ASR model",
        f"### `{labels.repo or model.path.stem}`",
        _origin(model, labels),
        _requirement(model, labels),
        _usage(model, labels),
        results.strip() if results else None,
        _config("ASR", model, "asr_train_config"),
        _config("LM", model, "lm_train_config"),
        CITATIONS,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def lacks(model: PackedModel) -> str | None:
    """Return what the card in the archive does not say and must; None if all is there.

    Raises:
        PackedModelError: It is not UTF-8.
    """
    text = model.readme()
    if text is None:
        return f"there is no {README}"
    needed = ("espnet-bimamba", f"`{model.encoder}`", "pip install")
    missing = [word for word in needed if word not in text]
    if missing:
        return f"{README} does not say {' or '.join(missing)}"
    if not any(map(_is_for_others, re.findall(r"pip install ([^\n`]+)", text))):
        return f"{README} does not say from where pip installs espnet-bimamba"
    return None


def add(path: Path, text: str) -> None:
    """Put the card into the archive, in place of the one it has.

    The new archive takes the old one's place when it is whole. The same card once more makes the
    same bytes.

    Raises:
        PackedModelError: It cannot be written.
    """
    path = path.resolve()  # the file that a link leads to, not the link
    with (
        _written(path) as draft,
        zipfile.ZipFile(path) as old,
        zipfile.ZipFile(draft, "w") as new,
    ):
        infos = old.infolist()
        for info in infos:
            if info.filename != README:
                with old.open(info) as source, new.open(_plain(info), "w") as target:
                    shutil.copyfileobj(source, target)
        # Dated as what was packed, lest the bytes change with the clock.
        new.writestr(zipfile.ZipInfo(README, infos[0].date_time), text)
        shutil.copymode(path, draft)


def write(path: Path, text: str) -> None:
    """Write the card to a file of its own, whole or not at all.

    Raises:
        PackedModelError: It cannot be written.
    """
    with _written(path) as draft:
        draft.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _written(path: Path) -> Iterator[Path]:
    try:
        with draft_of(path) as draft:
            yield draft
    except OSError as error:
        raise PackedModelError(path, "archive", f"cannot be written: {error.strerror}") from error


def _plain(info: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """Return the same entry without what only the old archive's layout needs."""
    plain = zipfile.ZipInfo(info.filename, info.date_time)
    plain.compress_type = info.compress_type
    plain.external_attr = info.external_attr
    plain.file_size = info.file_size
    return plain


def _front(labels: Labels) -> str:
    codes = labels.language.split(",") if labels.language else []
    front = {
        "tags": ["espnet", "audio", TASK, "espnet-bimamba"],
        "language": codes[0] if len(codes) == 1 else codes,
        "datasets": [labels.corpus] if labels.corpus else None,
        "license": labels.license,
        # ESPnet's template lacks it; without it the Hub's filter by task leaves a model out.
        "pipeline_tag": TASK,
    }
    known = {name: value for name, value in front.items() if value}
    return f"---\n{yaml.safe_dump(known, sort_keys=False, allow_unicode=True)}---"


def _origin(model: PackedModel, labels: Labels) -> str:
    using = f"using the {labels.corpus} recipe in " if labels.corpus else "in "
    if own := _own_recipe(labels):
        using = f"using the {labels.corpus} recipe of espnet-bimamba, `{own}`, with "
    espnet, torch = (
        one_line(noted_version(model.meta, name) or "(version not noted)")
        for name in ("espnet", "torch")
    )
    return (
        f"This model was trained {using}[ESPnet](https://github.com/espnet/espnet/) "
        f"{espnet}, with torch {torch}."
    )


def _own_recipe(labels: Labels) -> str | None:
    """Return the runner of the recipe that the corpus is named after, where ESPnet has none."""
    known = RECIPES.get(labels.corpus or "")
    return known.own if known else None


def _requirement(model: PackedModel, labels: Labels) -> str:
    install = "# no release is on a package index yet: in a clone of espnet-bimamba\npip install ."
    if labels.source:
        install = f"pip install {shlex.quote(labels.source)}"
    return f"""\
### Requirement: espnet-bimamba

Its encoder, `{model.encoder}`, is not part of ESPnet: **espnet-bimamba** {__version__} or later
must be installed beside ESPnet {OLDEST_ESPNET} or later. Without it ESPnet stops with
`ValueError: --encoder must be one of (...): --encoder {model.encoder}`.

```bash
{install}
espnet-bimamba doctor   # says whether ESPnet knows the encoder
```

Nothing of it has to be imported: ESPnet finds the encoder by its name."""


def _usage(model: PackedModel, labels: Labels) -> str:
    name = labels.repo or model.path.name
    # With intermediate CTC ESPnet returns what those layers heard as well.
    intermediate = (model.config.get("encoder_conf") or {}).get("interctc_layer_idx")
    nbest = "nbest, _ = speech2text(speech)" if intermediate else "nbest = speech2text(speech)"
    usage = f"""\
### Demo: How to use in ESPnet2

```python
import soundfile
from espnet2.bin.asr_inference import Speech2Text

speech2text = Speech2Text.from_pretrained("{name}")
speech, rate = soundfile.read("speech.wav")  # one channel, {model.sampling_rate} Hz
{nbest}
text, *_ = nbest[0]
print(text)
```

How it decodes is given with the name: `beam_size`, `ctc_weight` and the other options of the
inference YAML, which is not packed."""
    if not (labels.repo and labels.corpus) or _own_recipe(labels):
        return usage
    return f"""{usage} In the {labels.corpus} recipe of ESPnet:

```bash
./run.sh --skip_data_prep false --skip_train true --download_model {labels.repo}
```"""


def _config(task: str, model: PackedModel, key: str) -> str | None:
    name = model.meta["yaml_files"].get(key)
    if name is None:
        return None
    text = model.text(name).strip()
    return (
        f"## {task} config\n\n<details><summary>expand</summary>\n\n```\n{text}\n```\n\n</details>"
    )
