"""The paper's two bidirectional mixers: section 3.1, Algorithms 1 and 2."""

from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from espnet_bimamba.errors import OptionError, ShapeError
from espnet_bimamba.layers.checks import check_mixer_options, refuse_other_kinds
from espnet_bimamba.layers.mamba import Mamba, SelectiveSSM, masked_frames, resolve_dt_rank

FUSIONS = ("add", "concat")


class _Bidirectional(nn.Module):
    """A mixer that sees the whole signal."""

    def forward_chunk(self, x: Tensor, state: object = None) -> NoReturn:
        """Refuse a signal in chunks.

        Raises:
            ShapeError: Always: the backward direction starts at the signal's end.
        """
        raise ShapeError(
            f"{type(self).__name__} cannot take a signal in chunks: its backward direction starts "
            "at the signal's end; use mamba_type: mamba for streaming"
        )


class InnBiMamba(_Bidirectional):
    """Two state space models between one pair of projections (Algorithm 1).

    ``in_proj`` (x and z) and ``out_proj`` are shared; each direction owns its convolution,
    x_proj, dt_proj, A_log and D. Norm and residual (lines 1 and 15) are the block's.

    Args:
        d_model: Width of input and output.
        d_state: States a channel, 1 to 256.
        d_conv: Width of the convolutions in frames.
        expand: ``d_inner = expand * d_model``.
        dt_rank: Rank of the step sizes' projections; "auto" is ``ceil(d_model / 16)``.
        A_init: See :func:`espnet_bimamba.layers.initialization.initial_A_log`.
        dt_min: Smallest initial step size.
        dt_max: Largest initial step size.
        dt_init_floor: Initial step sizes are at least this.

    Raises:
        OptionError: An option is out of range or of the wrong type.
    """

    kind = "innbimamba"

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        A_init: str = "s4d_real_noise",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
    ) -> None:
        check_mixer_options(d_model, d_state, d_conv, expand, dt_rank, A_init)
        super().__init__()
        self.d_model = d_model
        d_inner = expand * d_model
        rank = resolve_dt_rank(dt_rank, d_model)
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.forward_ssm, self.backward_ssm = (
            SelectiveSSM(
                d_inner, d_state, d_conv, rank, A_init, dt_min, dt_max, dt_init_floor, reverse
            )
            for reverse in (False, True)
        )
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)
        self.register_load_state_dict_pre_hook(refuse_other_kinds)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Mix ``x`` over time in both directions.

        Args:
            x: ``(batch, length, d_model)``.
            lengths: ``(batch,)``, integer. Each sequence is reversed within its own length;
                output and gradients past its end are zero, whatever the padding holds.

        Returns:
            ``(batch, length, d_model)``.

        Raises:
            ShapeError: ``x`` has another shape.
            LengthsError: ``lengths`` does not describe the batch.
        """
        x = masked_frames(x, self.d_model, lengths)
        x, z = self.in_proj(x).chunk(2, dim=-1)
        y = self.forward_ssm.scan(x, z, lengths) + self.backward_ssm.scan(x, z, lengths)
        return self.out_proj(y)


class ExtBiMamba(_Bidirectional):
    """Two whole Mambas, one of them on the reversed signal (Algorithm 2).

    Norm and residual (lines 1 and 14) are the block's.

    Args:
        d_model: Width of input and output.
        fusion: How the directions meet. ``add`` is what the paper writes; ``concat`` is a linear
            map of both to ``d_model``, with bias, as in the authors' released code, which is what
            the parameter counts of the paper's SEAME and ASRU models show.
        **options: The options of :class:`Mamba`, for both directions alike.

    Raises:
        OptionError: An option is out of range or of the wrong type.
    """

    def __init__(self, d_model: int, fusion: str = "add", **options: Any) -> None:
        if fusion not in FUSIONS:
            raise OptionError("fusion", fusion, f"one of {', '.join(FUSIONS)}")
        super().__init__()
        self.d_model = d_model
        self.fusion = fusion
        self.forward_mamba = Mamba(d_model, **options)
        self.backward_mamba = Mamba(d_model, **options, reverse=True)
        if fusion == "concat":
            self.fusion_proj = nn.Linear(2 * d_model, d_model)
        self.register_load_state_dict_pre_hook(refuse_other_kinds)

    @property
    def kind(self) -> str:
        """The mixer in the words of ``encoder_conf``."""
        return f"extbimamba, fusion: {self.fusion}"

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Mix ``x`` over time in both directions.

        Arguments, result and errors: see :meth:`InnBiMamba.forward`.
        """
        ahead, back = self.forward_mamba(x, lengths), self.backward_mamba(x, lengths)
        if self.fusion == "add":
            return ahead + back
        fused = self.fusion_proj(torch.cat([ahead, back], dim=-1))
        return masked_frames(fused, self.d_model, lengths)
