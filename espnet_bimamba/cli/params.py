"""``espnet-bimamba params``: how many parameters each part of a training YAML's model has."""

import argparse
import copy
import importlib
import json
import pkgutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espnet_bimamba.cli.conf.files import parse, read
from espnet_bimamba.cli.conf.shipped import locate, stated_tokens
from espnet_bimamba.errors import BiMambaError, ConfigError, OptionError

if TYPE_CHECKING:
    import torch

VOCAB_SIZE = 5000

# The tasks that are tried first: a YAML that several could build is usually theirs.
USUAL_TASKS = ("asr", "s2t", "st", "mt", "slu", "ssl", "s2st", "diar", "cls", "enh", "enh_s2t")

# Tokens that one task or another looks for in its list.
SPECIAL_TOKENS = ("<unk>", "<na>", "<nospeech>", "<sop>", "<sos>", "<eos>")

# What the config.yaml of a training holds beyond the options of the task.
WRITTEN_BY_ESPNET = {"distributed", "version"}

# Modules that ESPnet's models import and that pip does not bring.
REMEDIES = {
    "warprnnt_pytorch": "the transducer's loss is no package of pip's: bash "
    "installers/install_warp-transducer.sh builds it, in tools/ of a working copy, which all "
    "copies share and `espnet-bimamba recipes get` makes",
}

# Where the parts of a block go in the table; a name that is not here stands for itself.
BLOCK_PARTS = {
    "self_attn": "mixer",
    "attn": "mixer",
    "feed_forward": "feed-forward",
    "feed_forward_macaron": "feed-forward",
    "conv_module": "conv",
    "cgmlp": "cgmlp",
    "depthwise_conv_fusion": "merge",
    "merge_proj": "merge",
}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        part: What is counted.
        depth: How deep it lies: 0 for the model's own parts.
        count: Its parameters.
        blocks: Over how many blocks ``count`` is the sum; 0 for anything but a part of a block.
    """

    part: str
    depth: int
    count: int
    blocks: int = 0


@dataclass(frozen=True)
class Built:
    """A model, and what it was built as.

    Attributes:
        task: Module of ``espnet2.tasks``.
        model: The model, on the meta device where it can be.
        tokens: Of its vocabulary; None if it has none.
        assumed: Whether neither the caller nor the YAML's options said how many those are.
    """

    task: str
    model: "torch.nn.Module"
    tokens: int | None
    assumed: bool


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``params`` to the command line."""
    parser = subparsers.add_parser(
        "params",
        help="count the parameters of a training YAML's model by part",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Counts the parameters of an ESPnet training YAML, stock ones too: of any ESPnet2\n"
            "task, and of ESPnet3's ASR. Says of how many tokens the vocabulary is."
        ),
        epilog=(
            "examples:\n"
            "  espnet-bimamba params seame/conextbimamba\n"
            "  espnet-bimamba params mini_an4/conbimamba --vocab-size 30\n"
            "  espnet-bimamba params conf/train_asr_conformer.yaml --input-size 80\n"
            "  espnet-bimamba params exp/asr_conbimamba/config.yaml --json"
        ),
    )
    parser.add_argument("yaml", metavar="YAML", help="a file, or a NAME as `conf list` prints it")
    parser.add_argument(
        "--task",
        metavar="TASK",
        help="module of espnet2.tasks, for example asr (default: the first that can build the "
        "model, asr first)",
    )
    parser.add_argument(
        "--vocab-size",
        type=_at_least_two,
        metavar="N",
        help="tokens (default: those that the YAML lists, else as many as its line `# Parameters:` "
        f"says, else {VOCAB_SIZE})",
    )
    parser.add_argument(
        "--input-size",
        type=_at_least_two,
        metavar="N",
        help="features a frame, in place of a frontend (default: what the frontend gives)",
    )
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table; see the module."""
    path = locate(args.yaml)
    text = read(path)
    stated = stated_tokens(text)
    built = build(
        parse(text, path),
        path,
        args.task,
        args.vocab_size,
        args.input_size,
        assumed=stated or VOCAB_SIZE,
    )
    rows = list(count(built.model))
    if args.json:
        parts = [asdict(row) for row in rows]
        print(json.dumps({"task": built.task, "tokens": built.tokens, "parts": parts}, indent=2))
        return 0
    print(f"task {built.task}{_vocabulary(built, stated)}\n{_format(rows)}")
    return 0


def _vocabulary(built: Built, stated: int | None) -> str:
    if built.tokens is None:
        return ""
    tokens = f", {built.tokens:,} tokens"
    if not built.assumed:
        return tokens
    if stated:
        return f"{tokens}, as the YAML's first lines say"
    return f"{tokens}, assumed: --vocab-size N takes another number"


def build(
    config: dict[str, Any],
    path: Path,
    task: str | None = None,
    vocab_size: int | None = None,
    input_size: int | None = None,
    *,
    assumed: int = VOCAB_SIZE,
) -> Built:
    """Build the model of a training YAML through ESPnet's task, without memory where it can.

    Args:
        config: What the YAML holds.
        path: The YAML, for messages.
        task: Module of ``espnet2.tasks``; None tries all of them.
        vocab_size: Number of tokens; None takes the YAML's own list or number.
        input_size: Features a frame, without a frontend; None asks the YAML and its frontend.
        assumed: Number of tokens where neither ``vocab_size`` nor the YAML says it.

    Raises:
        ConfigError: No task builds the model, for the reason that the message gives.
        OptionError: There is no such task.
    """
    options, vocab_size = _options(config, vocab_size)
    _refuse_no_mappings(options, path)
    unknown: dict[str, list[str]] = {}
    absent: dict[str, Exception] = {}
    failures: dict[str, Exception] = {}
    for name in _names(task):
        try:
            found = _tasks(name)
        except ImportError as error:
            absent[name] = error
            continue
        for cls in found:
            defaults = vars(cls.get_parser().parse_args([]))
            if missing := sorted(set(options) - set(defaults) - WRITTEN_BY_ESPNET):
                unknown[name] = missing
                continue
            settings = _settings(defaults, options, vocab_size, input_size, assumed)
            try:
                model = _build(cls, settings)
            except Exception as error:
                failures[name] = error
                continue
            tokens = len(settings["token_list"]) if "token_list" in settings else None
            said = vocab_size is not None or isinstance(options.get("token_list"), list)
            return Built(name, model, tokens, assumed=not said)
    if failures:
        # A YAML whose every key the first task knows is most likely its: others would fail anyway.
        first = next(iter(failures))
        raise ConfigError(path, f"cannot be built as {_reasons({first: failures[first]})}")
    if not unknown:
        raise ConfigError(path, f"cannot be built as {_reasons(absent)}")
    name = min(unknown, key=lambda name: len(unknown[name]))
    others = f"; not here: {_reasons(absent)}" if absent else ""
    raise ConfigError(
        path,
        f"is no training YAML of {task or 'any ESPnet task'}: {name}, the nearest, has no option "
        f"{', '.join(unknown[name])}{others}",
    )


def _reasons(failures: dict[str, Exception]) -> str:
    """Say why each task failed, tasks with the same reason together."""
    tasks: dict[str, list[str]] = {}
    for name, error in failures.items():
        tasks.setdefault(_reason(error), []).append(name)
    return "; as ".join(f"{', '.join(names)}: {reason}" for reason, names in tasks.items())


def _reason(error: Exception) -> str:
    if isinstance(error, BiMambaError):
        return str(error)
    reason = f"{type(error).__name__}: {error}"
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    return f"{reason}; {REMEDIES[missing]}" if missing in REMEDIES else reason


def _names(task: str | None) -> list[str]:
    """Return the modules of ``espnet2.tasks`` to try, the usual ones first.

    Raises:
        OptionError: ``task`` is none of them.
    """
    import espnet2.tasks

    names = {module.name for module in pkgutil.iter_modules(espnet2.tasks.__path__)} - {"abs_task"}
    if task is None:
        return [*USUAL_TASKS, *sorted(names.difference(USUAL_TASKS))]
    if task not in names:
        raise OptionError("--task", task, f"one of {', '.join(sorted(names))}")
    return [task]


def _tasks(name: str) -> list[Any]:
    """Return the task classes of a module of ``espnet2.tasks``, most have one."""
    from espnet2.tasks.abs_task import AbsTask

    module = importlib.import_module(f"espnet2.tasks.{name}")
    classes = [x for x in vars(module).values() if isinstance(x, type) and issubclass(x, AbsTask)]
    return [cls for cls in classes if cls.__module__ == module.__name__]


def _options(config: dict[str, Any], vocab_size: int | None) -> tuple[dict[str, Any], int | None]:
    """Return the options of the model, which an ESPnet3 YAML holds under ``model:``."""
    model = config.get("model")
    if not isinstance(model, dict):
        return config, vocab_size
    options = {name: value for name, value in model.items() if name != "vocab_size"}
    tokenizer = config.get("tokenizer")
    size = tokenizer.get("vocab_size") if isinstance(tokenizer, dict) else None
    return options, vocab_size or (size if isinstance(size, int) else None)


def _refuse_no_mappings(options: dict[str, Any], path: Path) -> None:
    # ESPnet would fail in Python's words.
    for name, value in options.items():
        if name.endswith("_conf") and isinstance(value, str | int | float | list):
            raise ConfigError(path, f"{name} is {value!r}, not a mapping of options")


def _settings(
    defaults: dict[str, Any],
    options: dict[str, Any],
    vocab_size: int | None,
    input_size: int | None,
    assumed: int,
) -> dict[str, Any]:
    # Neither has parameters; one reads a file that training makes, the other is slow and random.
    settings = {**defaults, **options, "normalize": None, "init": None}
    for name in defaults:
        if name.endswith("token_list"):
            settings[name] = _tokens(options.get(name), vocab_size, assumed)
    if input_size is not None:
        settings["input_size"] = input_size
    return settings


def _build(task: Any, settings: dict[str, Any]) -> "torch.nn.Module":
    import torch

    def build() -> torch.nn.Module:
        # ESPnet takes options out of the mappings that it is given.
        model: torch.nn.Module = task.build_model(argparse.Namespace(**copy.deepcopy(settings)))
        return model

    try:
        with torch.device("meta"):
            return build()
    except (NotImplementedError, RuntimeError):
        # Some parts compute with their own weights while they are built.
        return build()


def count(model: "torch.nn.Module") -> Iterator[Row]:
    """Yield the rows of the table: the model's parts in the order of their use, then the total."""
    parts = dict(model.named_children())
    order = ["frontend", "preencoder", "encoder", "postencoder", "decoder", "joint_network", "ctc"]
    for name in [*order, *(name for name in parts if name not in order)]:
        if name not in parts or not _size(parts[name]):
            continue
        yield Row(name, 0, _size(parts[name]))
        if name == "encoder":
            yield from _count_encoder(parts[name])
    yield Row("total", 0, _size(model))


def _count_encoder(encoder: "torch.nn.Module") -> Iterator[Row]:
    from torch.nn import ModuleList, Sequential

    for name, child in encoder.named_children():
        if not _size(child):
            continue
        if name == "encoders" and isinstance(child, Sequential | ModuleList):
            yield Row("blocks", 1, _size(child), blocks=len(child))
            yield from _count_blocks(child)
        else:
            yield Row(name, 1, _size(child))


def _count_blocks(blocks: "torch.nn.Module") -> Iterator[Row]:
    sizes: Counter[str] = Counter()
    for block in blocks.children():
        for name, child in block.named_children():
            sizes[_block_part(name)] += _size(child)
    number = len(list(blocks.children()))
    yield from (Row(part, 2, size, number) for part, size in sizes.items() if size)


def _block_part(name: str) -> str:
    return "norms" if name.startswith("norm") else BLOCK_PARTS.get(name, name)


def _size(module: "torch.nn.Module") -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _tokens(listed: object, vocab_size: int | None, assumed: int) -> list[str]:
    if vocab_size is None and isinstance(listed, list):
        return listed
    number = vocab_size or assumed
    others = [*SPECIAL_TOKENS, *(f"token{i}" for i in range(number))]
    return ["<blank>", *others[: number - 2], "<sos/eos>"]


def _at_least_two(text: str) -> int:
    if text.isdecimal() and int(text) >= 2:
        return int(text)
    raise argparse.ArgumentTypeError(
        f"{text!r} is not possible: allowed is an integer of at least 2"
    )


def _format(rows: list[Row]) -> str:
    total = rows[-1].count
    head = f"{'part':<24}{'parameters':>14}{'share':>9}{'per block':>14}"
    lines = [head, "-" * len(head)]
    for row in rows:
        part = "  " * row.depth + row.part + (f" ({row.blocks})" if row.part == "blocks" else "")
        each = f"{row.count / row.blocks:>14,.0f}" if row.blocks else ""
        lines.append(f"{part:<24}{row.count:>14,}{row.count / total:>9.1%}{each}")
    return "\n".join(lines)
