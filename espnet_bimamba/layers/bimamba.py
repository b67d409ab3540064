"""The paper's two bidirectional mixers: section 3.1, Algorithms 1 and 2."""

from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from espnet_bimamba.errors import OptionError, ShapeError
from espnet_bimamba.layers.checks import check_mixer_options, refuse_other_kinds
from espnet_bimamba.layers.mamba import (
    Mamba,
    SelectiveSSM,
    for_projection,
    frames_of,
    is_plain,
    masked_frames,
    resolve_dt_rank,
    scan_both,
)
from espnet_bimamba.layers.products import product_with_each, sum_of_products
from espnet_bimamba.ops.lengths import Lengths

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

    def forward(self, x: Tensor, lengths: Tensor | Lengths | None = None) -> Tensor:
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
        lengths = frames_of(x, self.d_model, lengths)
        xz = self.in_proj(for_projection(self.in_proj, x, lengths))
        # Both directions in one launch need a copy of x and z for either. On the CPU that costs
        # more than a second call.
        scan = self.scan_apart if xz.device.type == "cpu" else self.scan_together
        return self.out_proj(scan(xz, lengths))

    def scan_apart(self, xz: Tensor, lengths: Lengths | None) -> Tensor:
        """Scan ``xz`` (batch, length, 2 * d_inner) in either direction; return the sum.

        Returns:
            ``(batch, length, d_inner)``.
        """
        x, z = xz.chunk(2, dim=-1)
        return self.forward_ssm.scan(x, z, lengths) + self.backward_ssm.scan(x, z, lengths)

    def scan_together(self, xz: Tensor, lengths: Lengths | None) -> Tensor:
        """Do what :meth:`scan_apart` does, with one call of each operator for both directions."""
        twice = xz.unflatten(-1, (2, 1, -1)).expand(-1, -1, -1, 2, -1).flatten(2)
        x, z = twice.chunk(2, dim=-1)
        y = scan_both((self.forward_ssm, self.backward_ssm), x, z, lengths)
        ahead, back = y.chunk(2, dim=-1)
        return ahead + back


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

    def forward(self, x: Tensor, lengths: Tensor | Lengths | None = None) -> Tensor:
        """Mix ``x`` over time in both directions.

        Arguments, result and errors: see :meth:`InnBiMamba.forward`.
        """
        run = self.shared_forward if self._can_share() else self.plain_forward
        return run(x, lengths)

    def plain_forward(self, x: Tensor, lengths: Tensor | Lengths | None = None) -> Tensor:
        """Call one Mamba after the other: what a mixer of two Mambas is by definition."""
        lengths = frames_of(x, self.d_model, lengths)
        ahead, back = self.forward_mamba(x, lengths), self.backward_mamba(x, lengths)
        return ahead + back if self.fusion == "add" else self._concatenated([ahead, back], lengths)

    def shared_forward(self, x: Tensor, lengths: Tensor | Lengths | None = None) -> Tensor:
        """Do what :meth:`plain_forward` does with one product and one launch for both directions.

        In half precision more precisely: with fusion ``add`` the sum alone is rounded.
        """
        lengths = frames_of(x, self.d_model, lengths)
        mambas = (self.forward_mamba, self.backward_mamba)
        x = for_projection(self.forward_mamba.in_proj, x, lengths)
        (x_ahead, z_ahead), (x_back, z_back) = (m.in_proj.weight.chunk(2) for m in mambas)
        x, z = product_with_each(x, [x_ahead, x_back, z_ahead, z_back]).chunk(2, dim=-1)
        y = scan_both(mambas, x, z, lengths)
        if self.fusion == "add":
            return sum_of_products(y, [m.out_proj.weight for m in mambas])
        outputs = [m.out_proj(half) for m, half in zip(mambas, y.chunk(2, dim=-1), strict=True)]
        return self._concatenated(outputs, lengths)

    def _concatenated(self, outputs: list[Tensor], lengths: Lengths | None) -> Tensor:
        fused = self.fusion_proj(torch.cat(outputs, dim=-1))
        return masked_frames(fused, lengths)

    def _can_share(self) -> bool:
        mambas = (self.forward_mamba, self.backward_mamba)
        projections = [projection for m in mambas for projection in (m.in_proj, m.out_proj)]
        return all(is_plain(mamba, Mamba) for mamba in mambas) and all(
            is_plain(projection, nn.Linear) and projection.bias is None
            for projection in projections
        )
