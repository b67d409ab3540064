"""What the encoders share: a stock ESPnet encoder with its attention swapped for a mixer."""

import difflib
import inspect
from typing import Any, ClassVar, Literal

import torch
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from torch import Tensor, nn

from espnet_bimamba.convolution import keep_channels_last
from espnet_bimamba.encoders.options import REFUSED
from espnet_bimamba.encoders.positions import check_positions, replace_positions
from espnet_bimamba.encoders.stack import (
    CheckpointedSequential,
    LayerStack,
    RealFramesBatchNorm1d,
    encoding,
    mask_convolutions,
)
from espnet_bimamba.encoders.subsampling import SubsamplingConvolutions, subsample_in_pieces
from espnet_bimamba.errors import LengthsError, OptionError, ShapeError, UnusedOptionError
from espnet_bimamba.layers import MixerAttention, build_mixer
from espnet_bimamba.ops.lengths import check_lengths_kind, padding_mask


def _signature(cls: type) -> inspect.Signature:
    """Join our options and those of the stock encoder that mean something to ours."""
    parameters: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if base is AbsEncoder or "__init__" not in vars(base):
            continue
        options = inspect.signature(vars(base)["__init__"]).parameters
        if list(options) == ["self"]:
            break  # no constructor behind one without options is given any
        for name, parameter in options.items():
            if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and name != "self":
                parameters.setdefault(name, parameter)
    refused = REFUSED.get(getattr(cls, "name", ""), {})
    return inspect.Signature([p for name, p in parameters.items() if name not in refused])


class MixerHost(AbsEncoder):
    """Mix-in for a stock ESPnet encoder: its attention becomes a mixer, its padding harmless.

    A subclass names the stock encoder as its second base and says how to build it. What it does
    not name is inherited: input layers, feed-forward, convolution, interCTC, ``return_all_hs``.

    Args:
        input_size: Width of the input features, or size of the vocabulary of a token input.
        output_size: Width of the encoder, ``d_model`` of the mixers.
        mamba_type: ``mamba``, ``innbimamba`` or ``extbimamba``; ``attention`` for Table 16.
        fusion: For ``extbimamba``: ``add`` (what None stands for) or ``concat``.
        A_init: ``s4d_real``, ``random`` or ``s4d_real_noise``.
        d_state: States a channel.
        d_conv: Width of the mixer's convolution in frames.
        expand: The mixer's inner width over ``output_size``.
        dt_rank: Rank of the step sizes' projection, or "auto".
        pos_enc_layer_type: ``none``, ``abs_pos`` or ``scaled_abs_pos``.
        gradient_checkpoint_layers: Layers whose activations are recomputed in the backward pass;
            0 is the input layer, 1 the first block, as in ESPnet's E-Branchformer.
        **stock: The stock encoder's own options.

    Raises:
        UnusedOptionError: A stock option that only attention reads.
        OptionError: An option of ours has a value that cannot be honoured, or an option is
            unknown.
    """

    # What the stock encoder makes.
    embed: Any
    encoders: Any
    #: The name in ``encoder:``, by which messages speak of the encoder.
    name: ClassVar[str]
    #: Attribute of a stock layer that holds its attention.
    attention: ClassVar[str] = "self_attn"
    #: How the stock encoder is built before its attention is swapped.
    stock_options: ClassVar[dict[str, Any]] = {
        "attention_heads": 1,
        "use_flash_attn": False,
        "pos_enc_layer_type": "abs_pos",
    }

    def __init_subclass__(cls) -> None:
        """Show ``encoder_conf`` as it is: ESPnet reads the defaults off the signature."""
        super().__init_subclass__()
        cls.__signature__ = _signature(cls)

    def __init__(
        self,
        input_size: int,
        output_size: int = 256,
        mamba_type: str = "extbimamba",
        fusion: str | None = None,
        A_init: str = "s4d_real_noise",
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        pos_enc_layer_type: str = "none",
        gradient_checkpoint_layers: list[int] | None = None,
        **stock: Any,
    ) -> None:
        for option, reason in REFUSED[self.name].items():
            if option in stock:
                raise UnusedOptionError(option, stock[option], self.name, reason)
        _check_known(type(self), stock)
        check_positions(pos_enc_layer_type)
        super().__init__(input_size, output_size=output_size, **(stock | self.stock_options))
        replace_positions(self.embed, pos_enc_layer_type)
        subsample_in_pieces(self.embed)
        for layer in self.encoders:
            keep_channels_last(layer)
            mixer = build_mixer(
                mamba_type,
                output_size,
                fusion,
                A_init=A_init,
                d_state=d_state,
                d_conv=d_conv,
                expand=expand,
                dt_rank=dt_rank,
            )
            setattr(layer, self.attention, MixerAttention(mixer))
        self._prepare_layers(_layer_indices(gradient_checkpoint_layers, len(self.encoders)))
        self.pos_enc_layer_type = pos_enc_layer_type

    def _prepare_layers(self, checkpointed: set[int]) -> None:
        """Make the listed layers recompute their activations; a hook for subclasses."""

    def forward(
        self,
        xs_pad: Tensor,
        ilens: Tensor,
        prev_states: Tensor | None = None,
        masks: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor | tuple[Tensor, list], Tensor, Tensor | None]:
        """Encode a batch; what the padding holds, NaN included, reaches nothing.

        Args:
            xs_pad: ``(batch, length, input_size)`` features or ``(batch, length)`` tokens.
            ilens: ``(batch,)``, frames of each utterance.
            prev_states: Not used, as in the stock encoder.
            masks: ``(batch, length)``, true on padded frames; None computes it from ``ilens``.
            *args: The stock encoder's further arguments, ``ctc`` and ``return_all_hs``.
            **kwargs: Likewise.

        Returns:
            ``(batch, frames, output_size)``, zero past each utterance's end, or a tuple of it and
            the intermediate outputs, likewise; the output lengths ``(batch,)``; None.

        Raises:
            TooShortUttError: The input is too short for the subsampling.
            LengthsError: ``ilens`` does not describe the batch, or there is no utterance.
            ShapeError: ``masks`` is not true past each utterance's end only.
        """
        if masks is None:
            masks = _padding(xs_pad, ilens)
        else:
            _check_padding(masks, xs_pad)
        if xs_pad.is_floating_point():
            xs_pad = xs_pad.masked_fill(masks[..., None], 0)
        out, olens, states = super().forward(xs_pad, ilens, prev_states, masks, *args, **kwargs)
        if isinstance(out, tuple):
            out, intermediate = out
            return (_zero_past(out, olens), _zero_all_past(intermediate, olens)), olens, states
        return _zero_past(out, olens), olens, states


class LayerStackHost(MixerHost):
    """A host whose stock encoder iterates over its layers: Conformer and Transformer.

    Adds what ESPnet offers there without honouring it: ``layer_drop_rate``, gradient
    checkpointing, and feed-forward convolutions that do not read the padding.
    """

    def _prepare_layers(self, checkpointed: set[int]) -> None:
        super()._prepare_layers(checkpointed)
        masked = [
            mask_convolutions(feed_forward)
            for layer in self.encoders
            for name in ("feed_forward", "feed_forward_macaron")
            if (feed_forward := getattr(layer, name, None)) is not None
        ]
        if 0 in checkpointed:
            self._checkpoint_input_layer()
        self.encoders = LayerStack(
            *self.encoders,
            layer_drop_rate=self.encoders.layer_drop_rate,
            checkpointed={index - 1 for index in checkpointed},
            announce_frames=any(masked),
        )

    def forward(
        self, xs_pad: Tensor, ilens: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor | tuple[Tensor, list], Tensor, Tensor | None]:
        """Encode a batch: see :meth:`MixerHost.forward`."""
        if not self.encoders.wraps_layers():
            return super().forward(xs_pad, ilens, *args, **kwargs)
        with encoding():
            return super().forward(xs_pad, ilens, *args, **kwargs)

    def _checkpoint_input_layer(self) -> None:
        # The stock forward asks for the class of `embed`: its convolutions are wrapped inside.
        if isinstance(getattr(self.embed, "conv", None), SubsamplingConvolutions):
            self.embed.conv.checkpointed = True
        elif isinstance(self.embed, nn.Sequential):
            self.embed = CheckpointedSequential(*self.embed)


def count_real_frames_only(encoder: MixerHost) -> None:
    """Make the batch norms of a Conformer's convolution modules count real frames only."""
    for index in range(len(encoder.encoders)):
        if (module := encoder.encoders[index].conv_module) is not None:
            module.norm = RealFramesBatchNorm1d(module.norm.num_features)
    encoder.encoders.announce_frames = True


def check_real_frames_only(encoder: MixerHost) -> None:
    """Refuse to train an encoder whose batch norms have been exchanged.

    Raises:
        OptionError: One of them is not what :func:`count_real_frames_only` put there.
    """
    for layer in encoder.encoders:
        module = layer.conv_module
        if module is not None and not isinstance(module.norm, RealFramesBatchNorm1d):
            raise OptionError(
                "mask_batch_norm",
                True,
                f"False with {type(module.norm).__name__}",
                "It counts all frames of all processes (Lightning's sync_batchnorm: true).",
            )


def _check_known(cls: type[MixerHost], options: dict[str, Any]) -> None:
    """Refuse a key of ``encoder_conf`` that nobody reads, in the words of the YAML.

    Raises:
        OptionError: There is no such option; the message names the nearest, or all.
    """
    known = [name for name in inspect.signature(cls).parameters if name != "input_size"]
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known)
            hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(known)}."
            raise OptionError("encoder_conf", option, f"an option of {cls.name}", hint)


def _layer_indices(layers: object, blocks: int) -> set[int]:
    """Return what ``gradient_checkpoint_layers`` lists.

    Raises:
        OptionError: It is no list, or there is no such layer.
    """
    indices = [] if layers is None else layers
    if not isinstance(indices, list | tuple) or not all(
        type(index) is int and 0 <= index <= blocks for index in indices
    ):
        raise OptionError(
            "gradient_checkpoint_layers",
            layers,
            f"a list of indices from 0 (the input layer) to {blocks}",
        )
    return set(indices)


def _padding(xs_pad: Tensor, ilens: Tensor) -> Tensor:
    """Return ``(batch, length)``, true past each utterance's end."""
    batch, length = xs_pad.shape[:2]
    check_lengths_kind("ilens", ilens, batch)
    if batch and torch.compiler.is_compiling():
        # Tracing cannot branch on values: the graph checks them when it runs.
        in_range = ((ilens >= 0) & (ilens <= length)).all()
        torch._assert_async(in_range, "ilens must be from 0 to the batch's frames")
    elif not batch or int(ilens.min()) < 0 or int(ilens.max()) > length:
        raise LengthsError(
            f"ilens must hold {batch} lengths from 0 to {length} frames, for at least "
            f"one utterance, got {ilens.tolist()}"
        )
    # Not by ESPnet's make_pad_mask, whose memory grows with the square of the length.
    return padding_mask(ilens.to(xs_pad.device), length)


def _check_padding(masks: Tensor, xs_pad: Tensor) -> None:
    """Refuse a mask that is true anywhere but past each utterance's end.

    Raises:
        ShapeError: It is of another shape or dtype, or has a frame behind a masked one.
    """
    if masks.shape != xs_pad.shape[:2] or masks.dtype != torch.bool:
        raise ShapeError(
            f"masks must be (batch, length) = {tuple(xs_pad.shape[:2])} of torch.bool, "
            f"got {tuple(masks.shape)} of {masks.dtype}"
        )
    at_the_end = (masks[:, :-1] <= masks[:, 1:]).all()
    message = "masks must be true past each utterance's end only: a mixer knows lengths"
    if masks.is_cuda or torch.compiler.is_compiling():
        torch._assert_async(at_the_end, message)
    elif not at_the_end:
        raise ShapeError(message)


def _zero_past(x: Tensor, olens: Tensor) -> Tensor:
    return x.masked_fill(padding_mask(olens, x.shape[1])[..., None], 0)


def _zero_all_past(intermediate: list, olens: Tensor) -> list:
    """Zero intermediate outputs, which ESPnet lists bare or as (layer, output)."""
    return [
        (entry[0], _zero_past(entry[1], olens))
        if isinstance(entry, tuple)
        else _zero_past(entry, olens)
        for entry in intermediate
    ]
