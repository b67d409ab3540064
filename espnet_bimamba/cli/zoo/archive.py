"""Reads a packed model (what ESPnet's stage 14 makes) without unpacking or trusting it."""

import stat
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from espnet_bimamba.errors import PackedModelError
from espnet_bimamba.registry import ENCODERS, OLDEST_ESPNET

README = "README.md"
#: What ``espnet2.bin.pack asr`` packs under which name, and Speech2Text takes as an argument.
NEEDED = {"yaml_files": "asr_train_config", "files": "asr_model_file"}


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
        """Samples a second that the frontend expects; ESPnet also reads numbers like ``16k``."""
        rate = str((self.config.get("frontend_conf") or {}).get("fs", 16000)).lower()
        return int(float(rate.removesuffix("k")) * (1000 if rate.endswith("k") else 1))

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
        raise PackedModelError(path, "archive", "is no file")
    if path.suffix != ".zip":
        # ESPnet tells the format by the name alone, and stage 14 makes zips.
        raise PackedModelError(path, "archive", "is not called *.zip, as stage 14 calls it")
    return path


def safe_members(path: Path) -> tuple[str, ...]:
    """Return the names of the files in an archive that is intact and stays inside its folder.

    ESPnet's unpacking refuses an absolute name and one that climbs out, and writes a link's target
    into a file of the link's name. Here both are refused, and so is a name that comes twice: the
    second file would take the place of the one that was looked at.

    Raises:
        PackedModelError: A member is unsafe, damaged or encrypted, or it is no zip archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            for info in infos:
                if reason := _unsafe(info):
                    raise PackedModelError(path, "archive", f"{info.filename!r} {reason}")
            names = [info.filename for info in infos if not info.is_dir()]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise PackedModelError(path, "archive", f"{twice[0]!r} is in it more than once")
            if damaged := archive.testzip():
                raise PackedModelError(path, "archive", f"{damaged!r} is damaged: wrong checksum")
    except (zipfile.BadZipFile, zlib.error, RuntimeError, OSError) as error:
        raise PackedModelError(path, "archive", f"cannot be read: {error}") from error
    return tuple(names)


def _unsafe(info: zipfile.ZipInfo) -> str | None:
    """Return why a member must not be unpacked, if it must not."""
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
        shown = f"; ESPnet would read {found[0]}" if found else ""
        raise PackedModelError(path, "meta.yaml", f"is not at the top of the archive{shown}")
    meta = _mapping(path, "meta.yaml")
    for group, needed in NEEDED.items():
        files = meta.get(group)
        if not isinstance(files, dict) or needed not in files:
            raise PackedModelError(
                path, "meta.yaml", f"has no {needed} in {group}: stage 14 of asr.sh packs one"
            )
        for key, name in files.items():
            if name not in members:
                raise PackedModelError(
                    path, "meta.yaml", f"{key} is {name!r}, which is not in the archive"
                )
    release = str(meta.get("espnet", "")).partition(".")[0]
    if release.isdigit() and 0 < int(release) < int(OLDEST_ESPNET):
        raise PackedModelError(
            path, "meta.yaml", f"packed with espnet {release}; ours need espnet >= {OLDEST_ESPNET}"
        )
    return meta


def read_config(path: Path, members: tuple[str, ...], meta: dict[str, Any]) -> dict[str, Any]:
    """Return the training configuration, which names one of our encoders and packed files only.

    Raises:
        PackedModelError: The encoder is none of ours, or a file that inference reads is not packed.
    """
    name = meta["yaml_files"]["asr_train_config"]
    config = _mapping(path, name)
    encoder = config.get("encoder")
    if encoder not in list(ENCODERS):
        raise PackedModelError(
            path, name, f"encoder: {encoder} is none of ours, which are {', '.join(ENCODERS)}"
        )
    for option, value in files_of(config).items():
        if value not in members:
            raise PackedModelError(
                path, name, f"{option}: {value} is not in the archive, and inference reads it"
            )
    return config


def files_of(config: dict[str, Any]) -> dict[str, str]:
    """Return the options of a training configuration that name files read in inference."""
    options = {"normalize_conf.stats_file": (config.get("normalize_conf") or {}).get("stats_file")}
    if config.get("token_type") == "bpe":
        options["bpemodel"] = config.get("bpemodel")
    if isinstance(config.get("token_list"), str):
        options["token_list"] = config["token_list"]
    # ESPnet compares paths, not texts: ./exp/x is exp/x.
    return {option: str(PurePosixPath(value)) for option, value in options.items() if value}


def _text(path: Path, member: str) -> str:
    with zipfile.ZipFile(path) as archive:
        try:
            return archive.read(member).decode("utf-8")
        except UnicodeDecodeError as error:
            raise PackedModelError(path, member, f"is not UTF-8: {error.reason}") from error


def _mapping(path: Path, member: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(_text(path, member))
    except yaml.YAMLError as error:
        raise PackedModelError(path, member, f"is not valid YAML: {error}") from error
    if not isinstance(found, dict):
        raise PackedModelError(path, member, f"holds a {type(found).__name__}, not a mapping")
    return found
