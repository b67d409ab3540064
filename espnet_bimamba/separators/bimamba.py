"""The separator: masks or magnitudes from the magnitudes of a spectrum (appendix C.1)."""

import dataclasses
import inspect
from collections import OrderedDict
from typing import Any, Literal

from espnet2.enh.layers.complex_utils import is_complex
from espnet2.enh.separator.abs_separator import AbsSeparator
from espnet2.legacy.nets.pytorch_backend.transformer.attention import MultiHeadedAttention
from espnet2.legacy.nets.pytorch_backend.transformer.layer_norm import LayerNorm
from espnet2.legacy.nets.pytorch_backend.transformer.mask import subsequent_mask
from torch import Tensor, nn

from espnet_bimamba.errors import OptionError, ShapeError, UnusedOptionError
from espnet_bimamba.layers import LayerState, MixerAttention, build_mixer
from espnet_bimamba.layers.checks import check_flag, check_integer, check_rate
from espnet_bimamba.ops.lengths import check_lengths, padding_mask
from espnet_bimamba.separators.blocks import BLOCKS, BlockSizes

MIXERS = ("mamba", "innbimamba", "extbimamba", "attention")
BIDIRECTIONAL = ("innbimamba", "extbimamba")
ENDS = ("normalized", "plain")
NONLINEARITIES: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
}
# What each target allows at the output; the first is the default.
TARGETS = {"mask": ("sigmoid", "relu", "tanh"), "magnitude": ("relu",)}

ATTENTION_ONLY = ("aheads", "attention_dropout_rate")
MAMBA_ONLY = ("fusion", "A_init", "d_state", "d_conv", "expand", "dt_rank")
# A magnitude is what a mask makes of the mixture's; where that is smaller, there is no phase.
_FAINTEST = 1e-8


class BiMambaSeparator(AbsSeparator):
    """All networks of the paper's speech enhancement, for ESPnet's ``enh`` recipes.

    An input layer on the magnitudes of each frame, ``layers`` blocks, an output layer. What each
    output layer says of its source is a mask, or a magnitude that gets the mixture's phase.

    The paper leaves the two ends and the output's nonlinearity open. ``ends: normalized`` is that
    of its authors' code (https://github.com/Tonyyouyou/Mamba-in-Speech, ``SE/model`` in its
    history): a linear layer without bias, LayerNorm and ReLU before the blocks and LayerNorm
    before the output layer, sigmoid for masks and ReLU for magnitudes. ``plain`` is one linear
    layer at either end: the printed parameter counts are sums of that form, and cannot tell the
    other, of 768 parameters more at the paper's sizes.

    Args:
        input_dim: Bins of a frame; ESPnet gives it.
        num_spk: Sources to estimate.
        predict_noise: Whether the noise is one source more.
        block_type: ``independent`` (Figure 2a), ``transformer`` (2b) or ``conformer`` (2c).
        mamba_type: What mixes the frames of a block: ``mamba``, ``innbimamba``, ``extbimamba``,
            or ``attention`` for the baselines.
        causal: Whether no frame sees a later one. None: it does so where ``mamba_type`` is
            ``mamba``. The running statistics of a Conformer's batch norms are fixed in
            inference; in training these norms see whole batches.
        layers: Blocks.
        adim: Width.
        aheads: Heads, of attention only.
        linear_units: Inner width of the feed-forward networks of Transformer and Conformer.
        conformer_enc_kernel_size: Width of the Conformer's convolution. Of an even one not causal,
            the frame more is in the past.
        dropout_rate: The paper prints none for enhancement, and its authors' Mamba has none.
        attention_dropout_rate: Of attention's weights.
        ends: ``normalized`` or ``plain``.
        target: ``mask`` or ``magnitude``.
        nonlinear: Of the output: ``sigmoid``, ``relu`` or ``tanh``; None is ``sigmoid`` for masks
            and ``relu``, the only one there, for magnitudes.
        fusion: For ``extbimamba``: ``add`` (what None stands for) or ``concat``.
        A_init: ``s4d_real``, ``random`` or ``s4d_real_noise``.
        d_state: States a channel.
        d_conv: Width of the mixer's convolution in frames.
        expand: The mixer's inner width over ``adim``.
        dt_rank: Rank of the step sizes' projection, or "auto".

    Raises:
        OptionError: An option has a value that cannot be honoured.
        UnusedOptionError: An option that this block does not read is not at its default.
    """

    def __init__(
        self,
        input_dim: int,
        num_spk: int = 1,
        predict_noise: bool = False,
        block_type: str = "independent",
        mamba_type: str = "extbimamba",
        causal: bool | None = None,
        layers: int = 5,
        adim: int = 256,
        aheads: int = 8,
        linear_units: int = 1024,
        conformer_enc_kernel_size: int = 32,
        dropout_rate: float = 0.0,
        attention_dropout_rate: float = 0.0,
        ends: str = "normalized",
        target: str = "mask",
        nonlinear: str | None = None,
        fusion: str | None = None,
        A_init: str = "s4d_real_noise",
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
    ) -> None:
        given = dict(locals())
        _check_choices(block_type, mamba_type, ends, target)
        _refuse_unused(given, block_type, mamba_type)
        for option in ("num_spk", "layers", "adim", "linear_units", "conformer_enc_kernel_size"):
            check_integer(option, given[option])
        for option in ("dropout_rate", "attention_dropout_rate"):
            check_rate(option, given[option])
        check_flag("predict_noise", predict_noise)
        super().__init__()
        self._num_spk = num_spk
        self.predict_noise = predict_noise
        self.block_type = block_type
        self.mamba_type = mamba_type
        self.causal = resolve_causal(causal, block_type, mamba_type)
        self.target = target

        normalized = ends == "normalized"
        self.input_layer = nn.Sequential(nn.Linear(input_dim, adim, bias=not normalized))
        if normalized:
            self.input_layer.extend([LayerNorm(adim), nn.ReLU()])
        kernel = conformer_enc_kernel_size
        sizes = BlockSizes(adim, linear_units, kernel, self.causal, dropout_rate)
        mamba = {option: given[option] for option in MAMBA_ONLY}
        self.layers = nn.ModuleList(
            BLOCKS[block_type](
                sizes,
                _attention(adim, aheads, attention_dropout_rate)
                if mamba_type == "attention"
                else MixerAttention(build_mixer(mamba_type, adim, **mamba)),
            )
            for _ in range(layers)
        )
        self.final_norm = LayerNorm(adim) if normalized else nn.Identity()
        self.output_layers = nn.ModuleList(
            nn.Linear(adim, input_dim) for _ in range(num_spk + predict_noise)
        )
        self.nonlinear = _nonlinearity(target, nonlinear)

    @property
    def num_spk(self) -> int:
        """Sources that are estimated, the noise not counted."""
        return self._num_spk

    def forward(
        self, input: Any, ilens: Tensor, additional: dict | None = None
    ) -> tuple[list[Any], Tensor, OrderedDict[str, Any]]:
        """Estimate the sources; what the padding holds, NaN included, reaches nothing.

        Args:
            input: ``(batch, frames, bins)``, complex in torch's or torch_complex's way, or the
                real features of another encoder.
            ilens: ``(batch,)``, frames of each mixture.
            additional: Not read.

        Returns:
            The sources' spectra, each like ``input`` and zero past each mixture's end; ``ilens``;
            and by name ``mask_spk1`` and so on, ``(batch, frames, bins)``, real. With
            ``predict_noise`` there are ``noise1``, like ``input``, and ``mask_noise1`` as well.
            With ``target: magnitude`` a mask is the magnitude over the mixture's.

        Raises:
            ShapeError: ``input`` has another shape, with several channels for example.
            LengthsError: ``ilens`` does not describe the batch.
        """
        self._check_shape(input)
        batch, frames, _ = input.shape
        padding = padding_mask(check_lengths(ilens, batch, frames, input.device), frames)
        input = input.masked_fill(padding[..., None], 0)
        mask = self._layer_mask(~padding)
        x = self.input_layer(abs(input) if is_complex(input) else input)
        for layer in self.layers:
            x, _ = layer(x, mask)
        sources, others = self._sources(input, x, padding)
        return sources, ilens, others

    def forward_streaming(
        self, input_frame: Any, states: list[LayerState] | None = None
    ) -> tuple[list[Any], list[LayerState], OrderedDict[str, Any]]:
        """Estimate the sources of the next frames; frames together give what the whole gives.

        Args:
            input_frame: ``(batch, frames, bins)``, any number of frames from 1 on.
            states: What the call before returned, which it leaves as it is; None at the start.

        Returns:
            Spectra, the states to give with the next frames, and masks: see :meth:`forward`.

        Raises:
            OptionError: The network is not causal, or is one of attention, whose past would grow
                without end.
            ShapeError: ``input_frame`` has another shape.
        """
        self._check_streaming()
        self._check_shape(input_frame)
        if states is None:
            states = [LayerState() for _ in self.layers]
        states = [dataclasses.replace(state) for state in states]
        x = self.input_layer(abs(input_frame) if is_complex(input_frame) else input_frame)
        for layer, state in zip(self.layers, states, strict=True):
            x, _ = layer(x, state)
        sources, others = self._sources(input_frame, x)
        return sources, states, others

    def _sources(
        self, input: Any, x: Tensor, padding: Tensor | None = None
    ) -> tuple[list[Any], OrderedDict[str, Any]]:
        x = self.final_norm(x)
        masks = [self._mask(layer(x), input, padding) for layer in self.output_layers]
        names = [f"spk{index + 1}" for index in range(self.num_spk)]
        others = OrderedDict(
            (f"mask_{name}", mask) for name, mask in zip([*names, "noise1"], masks, strict=False)
        )
        if self.predict_noise:
            others["noise1"] = input * masks[-1]
        return [input * mask for mask in masks[: self.num_spk]], others

    def _mask(self, output: Tensor, input: Any, padding: Tensor | None) -> Tensor:
        magnitudes = abs(input)
        mask = self.nonlinear(output).to(magnitudes.dtype)
        if self.target == "magnitude":
            mask = mask / magnitudes.clamp_min(_FAINTEST)
        return mask if padding is None else mask.masked_fill(padding[..., None], 0)

    def _layer_mask(self, real: Tensor) -> Tensor:
        """Return what a layer may see: ``(batch, 1, keys)``, or ``(batch, queries, keys)``."""
        keys = real[:, None]
        if self.mamba_type != "attention" or not self.causal:
            return keys
        return keys & subsequent_mask(real.shape[1], device=real.device)

    def _check_shape(self, input: Any) -> None:
        bins = self.output_layers[0].out_features
        if input.dim() != 3 or input.shape[-1] != bins:
            raise ShapeError(
                f"input must be (batch, frames, {bins}), got {tuple(input.shape)}; of several "
                "channels one must be chosen before"
            )

    def _check_streaming(self) -> None:
        if self.mamba_type != "mamba":
            reason = (
                "Attention would keep every frame."
                if self.mamba_type == "attention"
                else "Its backward direction starts at the signal's end."
            )
            raise OptionError("mamba_type", self.mamba_type, "mamba for streaming", reason)
        if not self.causal:
            raise OptionError(
                "causal", False, "true for streaming", "The convolution sees later frames."
            )


def resolve_causal(causal: bool | None, block_type: str, mamba_type: str) -> bool:
    """Return what ``causal`` stands for.

    Raises:
        OptionError: It says what the rest cannot be.
    """
    if causal is None:
        return mamba_type == "mamba"
    check_flag("causal", causal)
    if causal and mamba_type in BIDIRECTIONAL:
        raise OptionError(
            "causal",
            causal,
            f"false with mamba_type={mamba_type!r}",
            "Its backward direction starts at the signal's end.",
        )
    if not causal and mamba_type == "mamba" and block_type != "conformer":
        raise OptionError(
            "causal",
            causal,
            f"true with mamba_type='mamba' and block_type={block_type!r}",
            "Nothing in such a block can see a later frame.",
        )
    return causal


def _check_choices(block_type: object, mamba_type: object, ends: object, target: object) -> None:
    for option, value, allowed in (
        ("block_type", block_type, BLOCKS),
        ("mamba_type", mamba_type, MIXERS),
        ("ends", ends, ENDS),
        ("target", target, TARGETS),
    ):
        if value not in list(allowed):
            raise OptionError(option, value, f"one of {', '.join(allowed)}")


def _refuse_unused(given: dict[str, Any], block_type: str, mamba_type: str) -> None:
    # ESPnet writes every default into the config that a model is loaded from: those pass.
    defaults = inspect.signature(BiMambaSeparator).parameters
    attention = mamba_type == "attention"
    unused = dict.fromkeys(
        MAMBA_ONLY if attention else ATTENTION_ONLY, f"mamba_type is {mamba_type}"
    )
    if block_type == "independent":
        unused["linear_units"] = "block_type is independent, whose layers have no feed-forward"
    if block_type != "conformer":
        unused["conformer_enc_kernel_size"] = f"block_type is {block_type}"
    for option, reason in unused.items():
        if given[option] != defaults[option].default:
            raise UnusedOptionError(option, given[option], "this bimamba", reason)


def _attention(adim: int, aheads: int, dropout_rate: float) -> nn.Module:
    check_integer("aheads", aheads)
    if adim % aheads:
        raise OptionError("aheads", aheads, f"a divisor of adim, which is {adim}")
    return MultiHeadedAttention(aheads, adim, dropout_rate)


def _nonlinearity(target: str, nonlinear: str | None) -> nn.Module:
    allowed = TARGETS[target]
    name = allowed[0] if nonlinear is None else nonlinear
    if name not in allowed:
        raise OptionError("nonlinear", name, f"one of {', '.join(allowed)} with target={target!r}")
    return NONLINEARITIES[name]()
