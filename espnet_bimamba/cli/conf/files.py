"""Reading, writing and comparing YAML files, each error with the file's name."""

import argparse
import difflib
from pathlib import Path
from typing import Any

import yaml

from espnet_bimamba import files
from espnet_bimamba.errors import ConfigError


def add_force(parser: argparse.ArgumentParser) -> None:
    """Add the option by which an action of ``conf`` replaces a file."""
    parser.add_argument("--force", action="store_true", help="replace a file that is there")


def read(path: Path) -> str:
    """Return the text of a YAML file with its line ends as they are.

    Raises:
        ConfigError: The file cannot be read or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ConfigError(path, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(path, f"is not UTF-8: {error.reason} at byte {error.start}") from error


def parse(text: str, path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        ConfigError: It is not YAML, or not a mapping.
    """
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(path, f"is not valid YAML: {error}") from error
    if config is None:
        raise ConfigError(path, "holds no options: a training YAML is a mapping of options")
    if not isinstance(config, dict):
        raise ConfigError(path, f"holds a {type(config).__name__}, not a mapping of options")
    return config


def items(mapping: yaml.Node | None, key: str | None = None) -> list[tuple[yaml.Node, yaml.Node]]:
    """Return the pairs of a mapping, all or those of one key."""
    if not isinstance(mapping, yaml.MappingNode):
        return []
    return [(name, value) for name, value in mapping.value if key in (None, name.value)]


def difference(old: str, new: str, old_name: str, new_name: str) -> list[str]:
    """Return the lines of a unified difference, each with its line end."""
    lines = difflib.unified_diff(
        old.splitlines(keepends=True), new.splitlines(keepends=True), old_name, new_name
    )
    return [line if line.endswith("\n") else f"{line}\n" for line in lines]


def write_whole(path: Path, text: str, *, force: bool) -> None:
    """Write a file, whole or not at all.

    Args:
        path: The file.
        text: What it shall hold.
        force: Whether to replace a file that is there.

    Raises:
        ConfigError: It is there already, or cannot be written; what was there is untouched.
    """
    if path.exists() and not force:
        raise ConfigError(path, "is there already: give --force to replace it")
    try:
        files.write_whole(path, text)
    except OSError as error:
        raise ConfigError(path, f"cannot be written: {error.strerror}") from error
