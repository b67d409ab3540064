"""Which ESPnet registries learn our names, which do not and why, and how they learn them.

This module is imported when the interpreter starts: it imports nothing at module level, and
classes are given as strings that are resolved when an ESPnet task is imported.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

OLDEST_ESPNET = "202609"

ENCODERS = {
    "conbimamba": "espnet_bimamba.encoders.conbimamba:ConBiMambaEncoder",
    "transbimamba": "espnet_bimamba.encoders.transbimamba:TransBiMambaEncoder",
    "bimamba": "espnet_bimamba.encoders.bimamba:BiMambaEncoder",
    "e_branchbimamba": "espnet_bimamba.encoders.e_branchbimamba:EBranchBiMambaEncoder",
}

# Of speech enhancement.
SEPARATORS = {"bimamba": "espnet_bimamba.separators.bimamba:BiMambaSeparator"}
SPECTRA = {"stft_sqrt_hann": "espnet_bimamba.separators.stft:SqrtHannEncoder"}
SIGNALS = {"stft_sqrt_hann": "espnet_bimamba.separators.stft:SqrtHannDecoder"}
CRITERIONS = {"compressed_mse": "espnet_bimamba.separators.loss:CompressedMagnitudeMSE"}

# ESPnet module -> its registry -> what it learns. The registries of enh_s2t and gan_tok are
# copies of those of enh, asr, st and diar, taken when the module is imported; enh_tse uses enh's.
HOSTS: dict[str, dict[str, dict[str, str]]] = {
    "espnet2.tasks.asr": {"encoder_choices": ENCODERS},
    "espnet2.tasks.asvspoof": {"encoder_choices": ENCODERS},
    "espnet2.tasks.cls": {"encoder_choices": ENCODERS},
    "espnet2.tasks.diar": {"encoder_choices": ENCODERS},
    "espnet2.tasks.enh": {
        "encoder_choices": SPECTRA,
        "separator_choices": SEPARATORS,
        "decoder_choices": SIGNALS,
        "criterion_choices": CRITERIONS,
    },
    "espnet2.tasks.enh_s2t": {
        "enh_encoder_choices": SPECTRA,
        "enh_separator_choices": SEPARATORS,
        "enh_decoder_choices": SIGNALS,
        "asr_encoder_choices": ENCODERS,
        "st_encoder_choices": ENCODERS,
        "diar_encoder_choices": ENCODERS,
    },
    "espnet2.tasks.gan_tok": {"asr_encoder_choices": ENCODERS},
    "espnet2.tasks.mt": {"encoder_choices": ENCODERS},
    "espnet2.tasks.s2st": {"encoder_choices": ENCODERS, "unit_encoder_choices": ENCODERS},
    "espnet2.tasks.s2t": {"encoder_choices": ENCODERS},
    "espnet2.tasks.s2t_ctc": {"promptencoder_choices": ENCODERS},
    "espnet2.tasks.slu": {"encoder_choices": ENCODERS},
    "espnet2.tasks.ssl": {"encoder_choices": ENCODERS},
    "espnet2.tasks.st": {
        "encoder_choices": ENCODERS,
        "hier_encoder_choices": ENCODERS,
        "md_encoder_choices": ENCODERS,
    },
    "espnet3.systems.esp2_asr.task": {"encoder_choices": ENCODERS},
}

# Registries of base AbsEncoder whose task does not call `encoder(xs, ilens[, ...])`.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("espnet2.tasks.beats", "encoder_choices"): (
        "builds its encoder with beats_config= and demands that its name is beats"
    ),
    ("espnet2.tasks.hubert", "encoder_choices"): (
        "builds its encoder with num_classes= and calls it with the labels"
    ),
    ("espnet2.tasks.lid", "encoder_choices"): "calls its encoder without lengths",
    ("espnet2.tasks.lid", "encoder_condition_choices"): "calls its encoder without lengths",
    ("espnet2.tasks.s2t_ctc", "encoder_choices"): (
        "calls its encoder with prefix_embeds= and the memory of a prompt"
    ),
    ("espnet2.tasks.spk", "encoder_choices"): "calls its encoder without lengths",
    ("espnet2.tasks.st", "extra_mt_encoder_choices"): (
        "unpacks two values where every encoder but the Hugging Face one returns three"
    ),
}

_warned: set[str] = set()


def register(module: "ModuleType") -> None:
    """Make our names known to the registries of a task module that has just been imported.

    Whatever goes wrong here becomes one warning for each cause: an ESPnet that does not use
    our classes is never stopped.

    Args:
        module: One of :data:`HOSTS`, already executed.
    """
    try:
        _check_espnet_version()
        _check_single_copy()
        for attribute, table in HOSTS[module.__name__].items():
            _extend(getattr(module, attribute), table, f"{module.__name__}.{attribute}")
    except Exception as error:
        warn_once(
            f"espnet-bimamba did not register its classes ({type(error).__name__}: {error}). "
            "ESPnet's own work as before."
        )


def _extend(choices: "Any", table: dict[str, str], where: str) -> None:
    for name, target in table.items():
        cls = _resolve(target)
        if not issubclass(cls, choices.base_type):
            raise TypeError(f"{target} is not a {choices.base_type.__name__}, as {where} demands")
        present = choices.classes.setdefault(name, cls)
        if present is not cls:
            warn_once(
                f"ESPnet has a class of its own called {name!r} "
                f"({present.__module__}.{present.__qualname__}): that one is used in {where}, "
                f"espnet-bimamba's is not registered there."
            )


def _resolve(target: str) -> type:
    import importlib

    module, _, attribute = target.partition(":")
    cls: type = getattr(importlib.import_module(module), attribute)
    return cls


def _check_espnet_version() -> None:
    import espnet2

    from espnet_bimamba.errors import IncompatibleEspnetError

    found = str(getattr(espnet2, "__version__", ""))
    release = found.partition(".")[0]
    # A source tree without version file calls itself 0.0.0: unknown, not old.
    if release.isdigit() and 0 < int(release) < int(OLDEST_ESPNET):
        raise IncompatibleEspnetError(found, OLDEST_ESPNET)


def _check_single_copy() -> None:
    copies = _copies()
    if len(copies) > 1:
        warn_once(
            f"espnet-bimamba is on the path {len(copies)} times: {copies[0]} is used, "
            f"{', '.join(copies[1:])} is not. Uninstall or remove all but one."
        )


def _copies() -> list[str]:
    """Folders on the path that hold this package; the one in use comes first."""
    import sys
    from pathlib import Path

    used = Path(__file__).resolve().parent
    folders = {(Path(entry) / used.name).resolve() for entry in sys.path}
    others = {folder for folder in folders if (folder / "__init__.py").is_file()} - {used}
    return [str(used), *sorted(str(folder) for folder in others)]


def warn_once(message: str) -> None:
    """Warn, unless the same was said before in this process."""
    import warnings

    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=2)
