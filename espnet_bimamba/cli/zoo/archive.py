"""Reads a packed model (what ESPnet's stage 14 makes) without unpacking or trusting it."""

import lzma
import re
import stat
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from espnet_bimamba.errors import PackedModelError
from espnet_bimamba.registry import ENCODERS, OLDEST_ESPNET

README = "README.md"
#: What ``espnet2.bin.pack asr`` packs under which name, and Speech2Text takes as an argument.
NEEDED = {"yaml_files": "asr_train_config", "files": "asr_model_file"}
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
#: Parts of the training configuration that are read here; each may be missing or empty.
MAPPINGS = ("encoder_conf", "frontend_conf", "normalize_conf")
#: Samples a second: as many as a frontend may be told, and what it is if it is told nothing.
HIGHEST_RATE, USUAL_RATE = 384_000, 16_000

#: Bytes when unpacked: of all members, many times ESPnet's largest models; of a text, which
#: a vocabulary of 250,000 tokens fits in, and which PyYAML reads in a minute.
LARGEST_ARCHIVE, LARGEST_TEXT = 32 * 2**30, 8 * 2**20
#: Characters: of a member's name; of a number in YAML, and of a text in a message.
LONGEST_NAME, LONGEST_NUMBER, LONGEST_SHOWN = 1000, 100, 200

#: What zipfile raises: RuntimeError of an encrypted member and one packed in an unknown way,
#: OSError of damaged bzip2, UnicodeDecodeError of a name that is not UTF-8.
UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
    OSError,
    UnicodeDecodeError,
)


@dataclass(frozen=True)
class PackedModel:
    """A packed model that :func:`read` found in order.

    Attributes:
        path: The archive.
        members: Names of its files.
        meta: What its ``meta.yaml`` holds.
        config: The training configuration.
    """

    path: Path
    members: tuple[str, ...]
    meta: dict[str, Any]
    config: dict[str, Any]

    @property
    def encoder(self) -> str:
        """The name of the encoder, one of ours."""
        return str(self.config["encoder"])

    @property
    def sampling_rate(self) -> int:
        """Samples a second that the frontend expects.

        Raises:
            PackedModelError: It is no number, or none of samples a second.
        """
        return _sampling_rate(self.path, _training(self.meta), self.config)

    def text(self, member: str) -> str:
        """Return the text of a member.

        Raises:
            PackedModelError: It is not UTF-8.
        """
        return _text(self.path, member)

    def named(self, filename: str) -> str | None:
        """Return the text of the first member with that file name in whatever folder, if any."""
        found = [name for name in self.members if PurePosixPath(name).name == filename]
        return self.text(found[0]) if found else None

    def readme(self) -> str | None:
        """Return the text of the card, if there is one."""
        return self.text(README) if README in self.members else None


def read(path: Path) -> PackedModel:
    """Read a packed model and look at everything that can be seen without ESPnet.

    Raises:
        PackedModelError: It cannot be read, is not safe, or contradicts itself; names the part.
    """
    members = safe_members(path)
    meta = read_meta(path, members)
    return PackedModel(path, members, meta, read_config(path, members, meta))


def existing(path: Path) -> Path:
    """Return the path of an archive that can be opened.

    Raises:
        PackedModelError: It is not there, or is not called as ESPnet wants it.
    """
    if not path.is_file():
        raise _wrong(path, "archive", "is no file")
    if path.suffix != ".zip":
        # ESPnet tells the format by the name alone, and stage 14 makes zips.
        raise _wrong(path, "archive", "is not called *.zip, as stage 14 calls it")
    return path


def safe_members(path: Path) -> tuple[str, ...]:
    """Return the names of the files in an archive that is intact and stays inside its folder.

    ESPnet's unpacking refuses an absolute name and one that climbs out, and writes a link's target
    into a file of the link's name. Here both are refused, and so is a name that comes twice: the
    second file would take the place of the one that was looked at. So is what is too large to be
    a model, before any of it is unpacked.

    Raises:
        PackedModelError: A member is unsafe, damaged or encrypted, or it is no zip archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            for info in infos:
                if reason := _unsafe(info):
                    raise _wrong(path, "archive", f"{shown(info.filename)} {reason}")
            if reason := _in_each_others_way(infos):
                raise _wrong(path, "archive", reason)
            if (size := sum(info.file_size for info in infos)) > LARGEST_ARCHIVE:
                what = f"would be {size / 2**30:.0f} GiB, more than {LARGEST_ARCHIVE / 2**30:.0f}"
                raise _wrong(path, "archive", f"unpacked, it {what}")
            if damaged := archive.testzip():
                raise _wrong(path, "archive", f"{damaged!r} is damaged: wrong checksum")
    except UNREADABLE as error:
        raise _wrong(path, "archive", f"cannot be read: {_shortened(str(error))}") from error
    return tuple(info.filename for info in infos if not info.is_dir())


def _unsafe(info: zipfile.ZipInfo) -> str | None:
    """Return why a member must not be unpacked, if it must not."""
    if len(info.filename) > LONGEST_NAME:
        return f"is a name of {len(info.filename)} characters, more than {LONGEST_NAME}"
    path = PurePosixPath(info.filename)
    # A backslash and a drive are harmless here, but not where the model will be unpacked.
    if path.is_absolute() or "\\" in info.filename or ":" in info.filename.partition("/")[0]:
        return "is an absolute path or one of another system, not a path inside the folder"
    if ".." in path.parts:
        return "points outside the folder that it is unpacked to"
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "is a symbolic link, not a file"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a special file, not a plain one"
    return None


def _in_each_others_way(infos: list[zipfile.ZipInfo]) -> str | None:
    """Return which member would take another's place, if one would."""
    files: set[PurePosixPath] = set()
    for info in infos:
        file = PurePosixPath(info.filename)  # to which a//b and a/./b are a/b
        if file in files:
            return f"{str(file)!r} is in it more than once"
        if not info.is_dir():
            files.add(file)
    for info in infos:
        file = PurePosixPath(info.filename)
        inside = [*file.parents, file] if info.is_dir() else file.parents
        if taken := next((folder for folder in inside if folder in files), None):
            return f"{str(taken)!r} is a file in it, and a folder for {info.filename!r}"
    return None


def read_meta(path: Path, members: tuple[str, ...]) -> dict[str, Any]:
    """Return ``meta.yaml``, every file of which is in the archive.

    ESPnet takes the paths in it as they stand, outside the archive too: for a model that was
    packed from outside the recipe's folder they exist on the packer's machine only.

    Raises:
        PackedModelError: It is missing, or names a file that is not packed, or an ESPnet that
            cannot have trained one of our encoders.
    """
    found = [name for name in members if PurePosixPath(name).name == "meta.yaml"]
    if not found or found[0] != "meta.yaml":
        instead = f"; ESPnet would read {shown(found[0])}" if found else ""
        raise _wrong(path, "meta.yaml", f"is not at the top of the archive{instead}")
    meta = _mapping(path, "meta.yaml")
    for group, needed in NEEDED.items():
        files = meta.get(group)
        if not isinstance(files, dict) or needed not in files:
            raise _wrong(
                path, "meta.yaml", f"has no {needed} in {group}: stage 14 of asr.sh packs one"
            )
        for key, name in files.items():
            if name not in members:
                raise _wrong(
                    path,
                    "meta.yaml",
                    f"{_shortened(str(key))} is {shown(name)}, which is not in the archive",
                )
    release = (noted_version(meta, "espnet") or "").partition(".")[0]
    if re.fullmatch("[0-9]{1,9}", release) and 0 < int(release) < int(OLDEST_ESPNET):
        raise _wrong(
            path, "meta.yaml", f"packed with espnet {release}; ours need espnet >= {OLDEST_ESPNET}"
        )
    return meta


def read_config(path: Path, members: tuple[str, ...], meta: dict[str, Any]) -> dict[str, Any]:
    """Return the training configuration, which names one of our encoders and packed files only.

    Raises:
        PackedModelError: The encoder is none of ours, a file that inference reads is not packed,
            be it the language model's, or a part of the configuration is of another kind than
            ESPnet writes.
    """
    name = _training(meta)
    config = _mapping(path, name)
    encoder = config.get("encoder")
    if encoder not in list(ENCODERS):
        raise _wrong(
            path, name, f"encoder is {shown(encoder)}, none of ours: {', '.join(ENCODERS)}"
        )
    for option in MAPPINGS:
        if not isinstance(config.get(option), dict | None):
            raise _wrong(path, name, f"{option} is {shown(config[option])}, not a mapping")
    _sampling_rate(path, name, config)
    _refuse_outside(path, name, members, files_of(config))
    language_model = meta["yaml_files"].get("lm_train_config")
    if language_model is not None:
        # Of its options inference reads this one only: the words come from the model's tokens.
        tokens = {"token_list": _mapping(path, language_model).get("token_list")}
        _refuse_outside(path, language_model, members, files_of(tokens))
    return config


def noted_version(meta: dict[str, Any], program: str) -> str | None:
    """Return the version of a program that ``meta.yaml`` notes, if it notes one."""
    noted = meta.get(program)
    return _shortened(str(noted)) if isinstance(noted, str | int | float) else None


def shown(value: object) -> str:
    """Return what an archive holds, whatever it is, as a few words for a message."""
    if isinstance(value, str):
        return _shortened(repr(value[: LONGEST_SHOWN + 1]))
    if isinstance(value, int | float | None):
        return repr(value)
    # Of the rest, a few bytes of an archive may stand for a text of any length.
    return f"a {type(value).__name__}"


def one_line(text: str) -> str:
    """Return text that cannot leave its line, nor change how the line is seen."""
    return "".join(
        " " if char.isspace() else char if char.isprintable() else ascii(char)[1:-1]
        for char in text
    )


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _wrong(path: Path, part: str, reason: str) -> PackedModelError:
    # Both may hold what the archive says.
    return PackedModelError(path, one_line(part), one_line(reason))


def files_of(config: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a training configuration that name files read in inference."""
    options = {"normalize_conf.stats_file": (config.get("normalize_conf") or {}).get("stats_file")}
    if config.get("token_type") == "bpe":
        options["bpemodel"] = config.get("bpemodel")
    if not isinstance(config.get("token_list"), list):
        options["token_list"] = config.get("token_list")
    # ESPnet compares paths, not texts: ./exp/x is exp/x.
    return {
        option: str(PurePosixPath(value)) if isinstance(value, str) else value
        for option, value in options.items()
        if value
    }


def _training(meta: dict[str, Any]) -> str:
    return str(meta["yaml_files"]["asr_train_config"])


def _refuse_outside(path: Path, name: str, members: tuple[str, ...], files: dict[str, Any]) -> None:
    for option, value in files.items():
        if value not in members:
            raise _wrong(
                path, name, f"{option} is {shown(value)}, not in the archive; inference reads it"
            )


def _sampling_rate(path: Path, name: str, config: dict[str, Any]) -> int:
    """Return ``frontend_conf``'s; ESPnet also reads numbers like ``16k``."""
    given = (config.get("frontend_conf") or {}).get("fs", USUAL_RATE)
    text = str(given).lower() if isinstance(given, str | int | float) else ""
    if match := re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(k?)", text):
        rate = int(float(match[1]) * (1000 if match[2] else 1))
        if 0 < rate <= HIGHEST_RATE:
            return rate
    raise _wrong(path, name, f"frontend_conf.fs is {shown(given)}, no number of samples a second")


def _text(path: Path, member: str) -> str:
    with zipfile.ZipFile(path) as archive:
        if (size := archive.getinfo(member).file_size) > LARGEST_TEXT:
            raise _wrong(path, member, f"is no text: {size / 2**20:.0f} MiB")
        try:
            return archive.read(member).decode("utf-8")
        except UnicodeDecodeError as error:
            raise _wrong(path, member, f"is not UTF-8: {error.reason}") from error


class _Loader(yaml.SafeLoader):
    """Reads YAML as ESPnet writes it, in which nothing short stands for something large."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse an alias: nine lists, each of ten aliases of the one before, are 10^10 items."""
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()
            raise ComposerError(
                problem="found an alias, which ESPnet writes none of", problem_mark=alias.start_mark
            )
        return super().compose_node(parent, index)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """Refuse a number that takes long to read or is too long to print, as 1:1:1 or 0xf may."""
        text = super().construct_scalar(node)
        if node.tag in NUMBERS and len(text) > LONGEST_NUMBER:
            problem = f"found a number of {len(text)} characters"
            raise ConstructorError(problem=problem, problem_mark=node.start_mark)
        return text


def _mapping(path: Path, member: str) -> dict[str, Any]:
    text = _text(path, member)
    try:
        found = yaml.load(text, _Loader)
    except Exception as error:  # of !!bool x a KeyError, of thousands of [ a RecursionError
        problem = _shortened(" ".join(str(error).split()))
        raise _wrong(path, member, f"is not valid YAML: {problem}") from error
    if not isinstance(found, dict):
        raise _wrong(path, member, f"holds a {type(found).__name__}, not a mapping")
    return found
