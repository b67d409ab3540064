"""A mixer where ESPnet expects self-attention."""

from typing import Any

from torch import Tensor, nn

from espnet_bimamba.errors import CheckpointError, ShapeError
from espnet_bimamba.layers.state import LayerState
from espnet_bimamba.ops.lengths import Lengths


class MixerAttention(nn.Module):
    """Give a mixer the call of ESPnet's self-attention modules.

    ESPnet's encoder layers call ``self_attn(query, key, value[, pos_emb], mask)`` with all three
    the same tensor (``espnet2.legacy.nets.pytorch_backend.transformer.attention``).

    Args:
        mixer: Called as ``mixer(x, lengths)`` with x ``(batch, length, d_model)``.
    """

    mixer: Any

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer
        self.register_load_state_dict_pre_hook(_refuse_attention)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *rest: Tensor | LayerState | None
    ) -> Tensor:
        """Mix ``query`` over time.

        Args:
            query: ``(batch, length, d_model)``.
            key: Not read: in a self-attention it is ``query``.
            value: Not read, likewise.
            *rest: ``[pos_emb,] mask``. The mask is ``(batch, 1, length)``, true on the frames
                ``0 .. n - 1`` of a sequence of n frames, or None. A :class:`LayerState` in its
                place makes ``query`` the next chunk of a signal, and is given what comes after it;
                only a :class:`~espnet_bimamba.layers.Mamba` can.

        Returns:
            ``(batch, length, d_model)``, zero where the mask is false.

        Raises:
            ShapeError: The mask has another shape, one for each query for example: a mixer
                cannot leave out single pairs of frames.
        """
        mask = rest[-1]
        if mask is None:
            return self.mixer(query)
        if isinstance(mask, LayerState):
            mixed, mask.mixer = self.mixer.forward_chunk(query, mask.mixer)
            return mixed
        if mask.shape != (query.shape[0], 1, query.shape[1]):
            raise ShapeError(
                f"the mask must be (batch, 1, length) = ({query.shape[0]}, 1, {query.shape[1]}), "
                f"got shape {tuple(mask.shape)}; a mixer knows lengths only"
            )
        return self.mixer(query, Lengths.of(mask.squeeze(1)))


def _refuse_attention(_: nn.Module, state_dict: dict[str, Tensor], prefix: str, *__: Any) -> None:
    if f"{prefix}linear_q.weight" in state_dict:
        raise CheckpointError(
            f"the checkpoint holds self-attention at {prefix.rstrip('.')}, but the model is built "
            "with a Mamba mixer; to start from such a checkpoint use "
            "--init_param with --ignore_init_mismatch true"
        )
