"""Causal encoders, which take an utterance in chunks as ESPnet's streaming programs give them."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.asr.encoder.contextual_block_conformer_encoder import ContextualBlockConformerEncoder
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError
from torch import Tensor

from espnet_bimamba.convolution import PaddedConvolutionModule
from espnet_bimamba.encoders.host import LayerStackHost
from espnet_bimamba.encoders.subsampling import SubsamplingConvolutions
from espnet_bimamba.errors import LengthsError, OptionError, UnusedOptionError
from espnet_bimamba.layers import LayerState
from espnet_bimamba.layers.checks import check_flag
from espnet_bimamba.ops.lengths import check_lengths_kind

# Option -> what it must be in a causal encoder, and why.
_CAUSAL: dict[str, tuple[object, str]] = {
    "mamba_type": ("mamba", "It reads later frames."),
    "pos_enc_layer_type": ("none", "A table of positions would grow with the utterance."),
    "positionwise_layer_type": ("linear", "Its convolution reads later frames."),
    "interctc_use_conditioning": (
        False,
        "ESPnet's streaming programs give the encoder no CTC layer.",
    ),
}
# What ESPnet's streaming program looks for in an encoder_conf, and does not read: what can be said
# of an encoder that is given frame by frame.
_BLOCKS = {"look_ahead": 0, "hop_size": 1, "block_size": 1}


class WithoutBlocks(ContextualBlockConformerEncoder):
    """The last base of an encoder that ESPnet's streaming programs shall take.

    They call what any encoder can offer, but assert that it is of one of ESPnet's two
    contextual-block classes. Everything of these is hidden by the bases before this one, and
    nothing of them is built.
    """

    def __init__(self) -> None:
        AbsEncoder.__init__(self)


@dataclass(frozen=True)
class EncoderState:
    """What an encoder remembers between two chunks; its size does not depend on their number.

    Attributes:
        pending: ``(batch, length, input_size)``, inputs that the subsampling will read again, or
            has not read yet: fewer than one output frame sees. Of tokens ``(batch, 0)``.
        begun: Whether there was an output frame before.
        layers: The past of each layer.
    """

    pending: Tensor
    begun: bool
    layers: list[LayerState]


class StreamingHost(LayerStackHost):
    """A host that, if it is causal, takes an utterance in chunks as well as at once.

    Args:
        input_size: Width of the input features, or size of the vocabulary of a token input.
        causal: Whether no output reads an input behind those that its own subsampling reads.
        look_ahead: None, or 0 with ``causal``: ESPnet's streaming program demands these three keys
            of its contextual-block encoders in the YAML, and does not read them.
        hop_size: None, or 1 with ``causal``.
        block_size: None, or 1 with ``causal``.
        **options: See :class:`~espnet_bimamba.encoders.host.MixerHost`.

    Raises:
        OptionError: ``causal`` is true, and another option has a value that does not go with it.
        UnusedOptionError: It is false, and a size of blocks was given.
    """

    def __init__(
        self,
        input_size: int,
        causal: bool = False,
        look_ahead: int | None = None,
        hop_size: int | None = None,
        block_size: int | None = None,
        **options: Any,
    ) -> None:
        check_flag("causal", causal)
        self._check_blocks(causal, look_ahead, hop_size, block_size)
        if causal:
            self._refuse_what_is_not_causal(options)
        super().__init__(input_size, **options)
        self.causal = causal
        if causal:
            self._make_convolutions_causal()

    def forward(
        self,
        xs_pad: Tensor,
        ilens: Tensor,
        prev_states: Any = None,
        *args: Any,
        is_final: bool = True,
        infer_mode: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, Tensor, Any]:
        """Encode a batch, or with ``infer_mode`` in evaluation the next chunk of one.

        Args:
            xs_pad: See :meth:`MixerHost.forward` and :meth:`forward_chunk`.
            ilens: Likewise.
            prev_states: Likewise.
            *args: The stock encoder's further arguments, of whole utterances only; or, where the
                first of them is a flag, ``is_final`` and ``infer_mode`` in the places that they
                have in ESPnet's contextual-block encoders.
            is_final: Whether the chunk is the last one.
            infer_mode: Whether ``xs_pad`` is a chunk; passed over in training, as in ESPnet's
                contextual-block encoders.
            **kwargs: As ``args``.

        Returns:
            See :meth:`MixerHost.forward` and :meth:`forward_chunk`.

        Raises:
            TypeError: After two flags there is something more.
        """
        # In the same place Conformer and Transformer have `masks`, which are no flag.
        if args and isinstance(args[0], bool):
            is_final, infer_mode = _flags(*args)
            args = ()
        if infer_mode and not self.training:
            return self.forward_chunk(xs_pad, ilens, prev_states, is_final)
        return super().forward(xs_pad, ilens, prev_states, *args, **kwargs)

    def forward_chunk(
        self, xs: Tensor, ilens: Tensor, state: EncoderState | None = None, is_final: bool = False
    ) -> tuple[Tensor, Tensor, EncoderState | None]:
        """Encode the next chunk; the chunks together give what the whole utterance gives.

        Args:
            xs: ``(batch, length, input_size)`` features or ``(batch, length)`` tokens, any number
                of them from 0 on.
            ilens: ``(batch,)``, all of them ``length``: a chunk has no padding.
            state: What the chunk before returned, which stays as it is; None at the start.
            is_final: Whether this is the last chunk.

        Returns:
            ``(batch, frames, output_size)``, all that the inputs so far suffice for, perhaps
            none; their number ``(batch,)``; the state to give with the next chunk, None after the
            last one.

        Raises:
            OptionError: The encoder is not causal.
            LengthsError: ``ilens`` is something else.
            TooShortUttError: The utterance ends, and was too short for the subsampling.
        """
        if not self.causal:
            raise OptionError(
                "causal", False, "true for streaming", "Its frames read the whole utterance."
            )
        _check_no_padding(xs, ilens)
        if state is None:
            state = EncoderState(xs[:, :0], False, [LayerState() for _ in self.encoders])
        frames, pending = self._subsample(torch.cat([state.pending, xs], dim=1))
        if is_final and not state.begun and not frames.shape[1]:
            _refuse_too_short(self.embed, pending)
        layers = [dataclasses.replace(layer) for layer in state.layers]
        if frames.shape[1]:
            for layer, past in zip(self.encoders, layers, strict=True):
                frames, _ = layer(frames, past)
            if self.normalize_before:
                frames = self.after_norm(frames)
        olens = ilens.new_full((len(xs),), frames.shape[1])
        if is_final:
            return frames, olens, None
        return frames, olens, EncoderState(pending, state.begun or frames.shape[1] > 0, layers)

    def _subsample(self, xs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the frames that ``xs`` suffices for, and what of it later frames will read."""
        convolutions = getattr(self.embed, "conv", None)
        if not isinstance(convolutions, SubsamplingConvolutions):
            return xs if self.embed is None else self.embed(xs), xs[:, :0]
        frames = convolutions.frames(xs.shape[1])
        # A copy: a view would keep the whole chunk in memory.
        pending = xs[:, frames * convolutions.stride :].clone()
        if not frames:
            return xs.new_zeros(len(xs), 0, self.output_size()), pending
        subsampled, _ = self.embed(xs, None)
        return subsampled, pending

    def _check_blocks(self, causal: bool, *sizes: int | None) -> None:
        for (option, only), value in zip(_BLOCKS.items(), sizes, strict=True):
            if value is None:
                continue
            if not causal:
                reason = "it has no blocks; remove the line, or add causal: true"
                raise UnusedOptionError(option, value, self.name, reason)
            if value != only:
                raise OptionError(
                    option, value, f"{only} with causal: true", "Each frame is encoded as it comes."
                )

    def _refuse_what_is_not_causal(self, options: dict[str, Any]) -> None:
        parameters = self.__signature__.parameters
        for option, (needed, reason) in _CAUSAL.items():
            value = options.get(option, parameters[option].default)
            if value != needed:
                raise OptionError("causal", True, f"false with {option}={value!r}", reason)

    def _make_convolutions_causal(self) -> None:
        convolutions = getattr(self.embed, "conv", None)
        if isinstance(convolutions, SubsamplingConvolutions) and not convolutions.can_be_cut:
            raise OptionError(
                "causal", True, "false with this input_layer", "Its frames read the whole input."
            )
        for layer in self.encoders:
            if (module := getattr(layer, "conv_module", None)) is not None:
                channels, [kernel] = module.norm.num_features, module.depthwise_conv.kernel_size
                layer.conv_module = PaddedConvolutionModule(
                    channels, kernel, module.activation, causal=True
                )


def _flags(is_final: bool, infer_mode: bool = False) -> tuple[bool, bool]:
    return is_final, infer_mode


def _check_no_padding(xs: Tensor, ilens: Tensor) -> None:
    batch, length = xs.shape[:2]
    check_lengths_kind("ilens", ilens, batch)
    if not batch or bool((ilens != length).any()):
        raise LengthsError(
            f"ilens of a chunk must be its {length} frames for each utterance, of which there is "
            f"at least one, got {ilens.tolist()}"
        )


def _refuse_too_short(embed: Any, pending: Tensor) -> None:
    if isinstance(getattr(embed, "conv", None), SubsamplingConvolutions):
        frames, least = pending.shape[1], embed.conv.field
        raise TooShortUttError(
            f"has {frames} frames and is too short for subsampling "
            f"(it needs at least {least} frames), return empty results",
            frames,
            least,
        )
