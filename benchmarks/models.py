"""The encoders that are compared, in the sizes of LibriSpeech-100's stock configurations."""

import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pkgutil import resolve_name
from typing import Any

from torch import nn

from benchmarks.timing import Settings, interleaved

FEATURES = 80
FRAMES_A_SECOND = 100
#: What makes any of them tiny, for tests.
_TINY = {"output_size": 16, "num_blocks": 1, "linear_units": 16, "cnn_module_kernel": 3}
_TINY |= {"cgmlp_linear_units": 16, "cgmlp_conv_kernel": 3, "merge_conv_kernel": 3}


@dataclass(frozen=True)
class Encoder:
    """An encoder to measure.

    Attributes:
        name: Its name in ``encoder:``.
        path: Where its class is.
        conf: ``encoder_conf``.
        ours: Whether it is this package's.
    """

    name: str
    path: str
    conf: dict[str, Any] = field(hash=False)
    ours: bool

    def build(self) -> nn.Module:
        """Build it without its task, which takes long to import; in evaluation mode."""
        return resolve_name(self.path)(FEATURES, **copy.deepcopy(self.conf)).eval()

    def with_options(self, **options: Any) -> "Encoder":
        """Return it with some options set."""
        return replace(self, conf=self.conf | options)


_STACK = {"output_size": 256, "num_blocks": 12, "input_layer": "conv2d"}
_ATTENTION = {"attention_heads": 4, "attention_dropout_rate": 0.1}
_TRANSFORMER = _STACK | {"linear_units": 1024}
_CONFORMER = _TRANSFORMER | {
    "macaron_style": True,
    "use_cnn_module": True,
    "cnn_module_kernel": 31,
    "activation_type": "swish",
}
_E_BRANCHFORMER = _TRANSFORMER | {
    "cgmlp_linear_units": 1024,
    "cgmlp_conv_kernel": 31,
    "merge_conv_kernel": 31,
    "use_ffn": True,
    "macaron_ffn": True,
}
_RELATIVE = {"pos_enc_layer_type": "rel_pos", "rel_pos_type": "latest"}


def _ours(name: str, cls: str, conf: dict[str, Any]) -> Encoder:
    return Encoder(name, f"espnet_bimamba.encoders.{name}:{cls}", conf, ours=True)


def _peer(name: str, cls: str, conf: dict[str, Any]) -> Encoder:
    return Encoder(name, f"espnet2.asr.encoder.{name}_encoder:{cls}", conf, ours=False)


_EXT, _INN = {"mamba_type": "extbimamba"}, {"mamba_type": "innbimamba"}
ENCODERS: dict[str, Encoder] = {
    "conbimamba-ext": _ours("conbimamba", "ConBiMambaEncoder", _CONFORMER | _EXT),
    "conbimamba-inn": _ours("conbimamba", "ConBiMambaEncoder", _CONFORMER | _INN),
    "transbimamba": _ours("transbimamba", "TransBiMambaEncoder", _TRANSFORMER | _EXT),
    "e_branchbimamba": _ours("e_branchbimamba", "EBranchBiMambaEncoder", _E_BRANCHFORMER | _EXT),
    "bimamba": _ours("bimamba", "BiMambaEncoder", _STACK | _EXT),
    "conformer": _peer(
        "conformer",
        "ConformerEncoder",
        _CONFORMER | _ATTENTION | _RELATIVE | {"selfattention_layer_type": "rel_selfattn"},
    ),
    "e_branchformer": _peer(
        "e_branchformer",
        "EBranchformerEncoder",
        _E_BRANCHFORMER | _ATTENTION | _RELATIVE | {"attention_layer_type": "rel_selfattn"},
    ),
    "transformer": _peer("transformer", "TransformerEncoder", _TRANSFORMER | _ATTENTION),
}

#: ESPnet's attention comes in two forms; a third, flash attention, it takes by itself if it can.
ATTENTIONS = {"plain": {"use_sdpa": False}, "sdpa": {"use_sdpa": True}}


def encoder(subject: str, settings: Settings, **options: Any) -> Encoder:
    """Return a row of :data:`ENCODERS` in the size of the run."""
    row = ENCODERS[subject]
    if settings.scale == "tiny":
        row = row.with_options(**{k: v for k, v in _TINY.items() if k in row.conf})
    return row.with_options(**options)


def fastest_attention(
    call: Callable[[dict[str, Any]], Callable[[], object]], settings: Settings
) -> tuple[str, dict[str, list[float]]]:
    """Return which of :data:`ATTENTIONS` is fastest, and the samples that say so.

    Args:
        call: Makes what is timed, given the options of the encoder.
        settings: How the run is made.
    """
    calls = {name: call(options) for name, options in ATTENTIONS.items()}
    least = 1 if settings.scale == "quick" else 2
    samples = interleaved(calls, settings, seconds=3, least=least, most=5)
    times = {name: statistics.median(taken) for name, taken in samples.items()}
    return min(times, key=lambda name: times[name]), samples
