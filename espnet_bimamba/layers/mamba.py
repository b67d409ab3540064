"""The selective state space model and Mamba, the unidirectional mixer built on it."""

import math
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from espnet_bimamba.errors import ShapeError
from espnet_bimamba.layers.checks import check_dt_range, check_mixer_options, refuse_other_kinds
from espnet_bimamba.layers.initialization import initial_A_log, initial_dt_bias
from espnet_bimamba.layers.products import may_write, products_of_pairs
from espnet_bimamba.ops import causal_conv1d, selective_scan
from espnet_bimamba.ops.lengths import Lengths, fitting, is_full, padding_mask


class MambaState(NamedTuple):
    """What a :class:`Mamba` remembers between two chunks of a signal.

    Attributes:
        conv: ``(batch, d_inner, d_conv - 1)``, the last inputs of the convolution.
        ssm: ``(batch, d_inner, d_state)``, the state of the scan, float32 at least.
    """

    conv: Tensor
    ssm: Tensor


class SelectiveSSM(nn.Module):
    """Causal convolution, input-dependent step sizes and the scan: Mamba between its projections.

    Lines 5 to 11 of the paper's Algorithms 1 and 2, for one direction. Parameters have the names
    and shapes of ``mamba_ssm.Mamba``.

    Args:
        d_inner: Channels.
        d_state: States a channel, 1 to 256.
        d_conv: Width of the convolution in frames.
        dt_rank: Rank of the step sizes' projection.
        A_init: See :func:`espnet_bimamba.layers.initialization.initial_A_log`.
        dt_min: Smallest initial step size.
        dt_max: Largest initial step size.
        dt_init_floor: Initial step sizes are at least this.
        reverse: Whether time runs backwards.

    Raises:
        OptionError: The range of the initial step sizes is none.
    """

    def __init__(
        self,
        d_inner: int,
        d_state: int,
        d_conv: int,
        dt_rank: int,
        A_init: str,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        reverse: bool = False,
    ) -> None:
        check_dt_range(dt_min, dt_max, dt_init_floor)
        super().__init__()
        self.d_inner = d_inner
        self.d_state = d_state
        self.d_conv = d_conv
        self.dt_rank = dt_rank
        self.A_init = A_init
        self.dt_range = (dt_min, dt_max, dt_init_floor)
        self.reverse = reverse
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, d_inner)
        self.A_log = nn.Parameter(torch.empty(d_inner, d_state))
        self.D = nn.Parameter(torch.empty(d_inner))
        for parameter in (self.A_log, self.D):
            # ESPnet's `exclude_weight_decay: true` looks for this mark.
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        self.espnet_initialization_fn()

    @torch.no_grad()
    def espnet_initialization_fn(self) -> None:
        """Set the parameters that make the model an SSM to their own initialisation.

        ESPnet calls this after its global ``init:``, which would re-draw A_log and dt_proj,
        zero the step sizes' bias and shrink the depthwise convolution about ninefold.
        """
        self.conv1d.reset_parameters()
        bound = self.dt_rank**-0.5
        self.dt_proj.weight.uniform_(-bound, bound)
        self.dt_proj.bias.copy_(initial_dt_bias(self.d_inner, *self.dt_range))
        self.A_log.copy_(initial_A_log(self.A_init, self.d_inner, self.d_state))
        self.D.fill_(1)

    def scan(self, x: Tensor, z: Tensor, lengths: Tensor | Lengths | None = None) -> Tensor:
        """Mix ``x`` over time and gate it.

        Args:
            x: ``(batch, length, d_inner)``.
            z: ``(batch, length, d_inner)``, the gate before its SiLU.
            lengths: ``(batch,)`` or None.

        Returns:
            ``(batch, length, d_inner)``, zero past each sequence's end.
        """
        convolved = causal_conv1d(**self._conv_inputs(x), reverse=self.reverse, lengths=lengths)
        inputs = self._scan_inputs(cast(Tensor, convolved), z)
        y = selective_scan(**inputs, reverse=self.reverse, lengths=lengths)
        return cast(Tensor, y).transpose(1, 2)

    def scan_chunk(self, x: Tensor, z: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        """Continue :meth:`scan` from ``state``; the chunks of a signal give what the whole gives.

        Args:
            x: ``(batch, length, d_inner)``, the next chunk.
            z: Like ``x``.
            state: What the chunk before returned.

        Returns:
            ``(batch, length, d_inner)`` and the state after the chunk.
        """
        convolved, window = causal_conv1d(
            **self._conv_inputs(x), initial_states=state.conv, return_final_states=True
        )
        y, last = selective_scan(
            **self._scan_inputs(convolved, z), initial_state=state.ssm, return_last_state=True
        )
        return y.transpose(1, 2), MambaState(window, last)

    def _conv_inputs(self, x: Tensor) -> dict[str, Any]:
        return {
            "x": x.transpose(1, 2),
            "weight": self.conv1d.weight.squeeze(1),
            "bias": self.conv1d.bias,
            "activation": "silu",
        }

    def _scan_inputs(self, convolved: Tensor, z: Tensor) -> dict[str, Any]:
        sizes = [self.dt_rank, self.d_state, self.d_state]
        dt, B, C = self.x_proj(convolved.transpose(1, 2)).split(sizes, dim=-1)
        return {
            "u": convolved,
            # The bias of the step sizes is in dt_proj, so `delta_bias` stays empty.
            "delta": self.step_sizes(dt).transpose(1, 2),
            "A": -torch.exp(at_least_float32(self.A_log)),
            "B": B.transpose(1, 2),
            "C": C.transpose(1, 2),
            "D": at_least_float32(self.D),
            "z": z.transpose(1, 2),
            "delta_softplus": True,
        }

    def step_sizes(self, dt: Tensor) -> Tensor:
        """Project the step sizes, under autocast as well in the precision of the parameters.

        Their bias does not survive bfloat16.
        """
        device = dt.device.type
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return self.dt_proj(dt)
        with torch.autocast(dt.device.type, enabled=False):
            return self.dt_proj(dt.to(self.A_log.dtype))


def scan_both(
    ssms: tuple[SelectiveSSM, SelectiveSSM], x: Tensor, z: Tensor, lengths: Lengths | None
) -> Tensor:
    """Do what either's :meth:`SelectiveSSM.scan` does, with one call of each operator for both.

    Args:
        ssms: Of the same sizes, the second against the direction of the first.
        x: ``(batch, length, 2 * d_inner)``, the input of the first and beside it the second's.
        z: Like ``x``.
        lengths: ``(batch,)`` or None.

    Returns:
        ``(batch, length, 2 * d_inner)``, zero past each sequence's end.
    """
    directions: dict[str, Any] = {
        "reverse": ssms[0].reverse,
        "bidirectional": True,
        "lengths": lengths,
    }
    convolved = causal_conv1d(
        x=x.transpose(1, 2),
        weight=torch.cat([ssm.conv1d.weight for ssm in ssms]).squeeze(1),
        bias=torch.cat([cast(Tensor, ssm.conv1d.bias) for ssm in ssms]),
        activation="silu",
        **directions,
    )
    y = selective_scan(**_inputs_of_both(ssms, cast(Tensor, convolved), z), **directions)
    return cast(Tensor, y).transpose(1, 2)


def _inputs_of_both(
    ssms: tuple[SelectiveSSM, SelectiveSSM], convolved: Tensor, z: Tensor
) -> dict[str, Any]:
    # Cut where channels are last: their gradients are put together in the order of memory.
    halves = convolved.transpose(1, 2).chunk(2, dim=-1)
    if all(is_plain(ssm.x_proj, nn.Linear) for ssm in ssms):
        projected = products_of_pairs(halves, [ssm.x_proj.weight for ssm in ssms])
    else:
        projected = torch.stack([ssm.x_proj(x) for ssm, x in zip(ssms, halves, strict=True)], dim=1)
    dt, B, C = projected.split([ssms[0].dt_rank, ssms[0].d_state, ssms[0].d_state], dim=-1)
    return {
        "u": convolved,
        "delta": _step_sizes_of_both(ssms, dt.unbind(1)).transpose(1, 2),
        "A": -torch.exp(at_least_float32(torch.cat([ssm.A_log for ssm in ssms]))),
        "B": B.transpose(2, 3),
        "C": C.transpose(2, 3),
        "D": at_least_float32(torch.cat([ssm.D for ssm in ssms])),
        "z": z.transpose(1, 2),
        "delta_softplus": True,
    }


def _step_sizes_of_both(ssms: tuple[SelectiveSSM, SelectiveSSM], dts: tuple[Tensor, ...]) -> Tensor:
    """Project both ``(batch, length, dt_rank)`` to one ``(batch, length, 2 * d_inner)``."""
    if not may_write() or not all(is_plain(ssm.dt_proj, nn.Linear) for ssm in ssms):
        steps = [ssm.step_sizes(dt) for ssm, dt in zip(ssms, dts, strict=True)]
        return torch.cat(steps, dim=-1)
    # Each writes its half: on the CPU the copy, and above all the memory that it takes from the
    # system afresh, would cost a long signal more than all that is saved.
    batch, length, _ = dts[0].shape
    weight = ssms[0].dt_proj.weight
    steps_of_both = weight.new_empty(batch * length, 2 * ssms[0].d_inner)
    for half, ssm, dt in zip(steps_of_both.chunk(2, dim=-1), ssms, dts, strict=True):
        # In the precision of the parameters: autocast leaves alone what has an `out`.
        rows, dt_proj = dt.flatten(0, 1).to(weight.dtype), ssm.dt_proj
        torch.addmm(dt_proj.bias, rows, dt_proj.weight.t(), out=half)
    return steps_of_both.unflatten(0, (batch, length))


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of ``module`` does what ``kind`` does with these parameters, and no more.

    Not so where it was replaced (int8, LoRA adapters), given a forward of its own, carries hooks
    (of pruning and of older weight norm, too), where every module has one (a profiler's), or where
    its weight is a tensor of another kind, quantised or in shards.
    """
    return (
        type(module) is kind
        and not (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or torch.nn.modules.module._has_any_global_hook()
            or "forward" in module.__dict__
        )
        and _ORDINARY.issuperset(map(type, module._parameters.values()))
    )


#: Types of parameters that are what they look like; a quantised or a sharded one has its own.
_ORDINARY = {nn.Parameter, Tensor, type(None)}


class Mamba(SelectiveSSM):
    """Mamba, causal unless reversed. No norm and no residual: the block around it owns them.

    A drop-in for ``mamba_ssm.Mamba`` ("Mamba: Linear-Time Sequence Modeling with Selective State
    Spaces"): the state dict has the same names and shapes.

    Args:
        d_model: Width of input and output.
        d_state: States a channel, 1 to 256.
        d_conv: Width of the convolution in frames.
        expand: ``d_inner = expand * d_model``.
        dt_rank: Rank of the step sizes' projection; "auto" is ``ceil(d_model / 16)``.
        A_init: ``s4d_real``, ``random`` or ``s4d_real_noise``, see
            :func:`espnet_bimamba.layers.initialization.initial_A_log`.
        dt_min: Smallest initial step size.
        dt_max: Largest initial step size.
        dt_init_floor: Initial step sizes are at least this.
        reverse: Whether time runs backwards.

    Raises:
        OptionError: An option is out of range or of the wrong type.
    """

    kind = "mamba"

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
        reverse: bool = False,
    ) -> None:
        check_mixer_options(d_model, d_state, d_conv, expand, dt_rank, A_init)
        super().__init__(
            d_inner=expand * d_model,
            d_state=d_state,
            d_conv=d_conv,
            dt_rank=resolve_dt_rank(dt_rank, d_model),
            A_init=A_init,
            dt_min=dt_min,
            dt_max=dt_max,
            dt_init_floor=dt_init_floor,
            reverse=reverse,
        )
        self.d_model = d_model
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)
        self.register_load_state_dict_pre_hook(refuse_other_kinds)

    def forward(self, x: Tensor, lengths: Tensor | Lengths | None = None) -> Tensor:
        """Mix ``x`` over time.

        Args:
            x: ``(batch, length, d_model)``.
            lengths: ``(batch,)``, integer. Output and gradients past each sequence's end are
                zero, whatever the padding holds.

        Returns:
            ``(batch, length, d_model)``.

        Raises:
            ShapeError: ``x`` has another shape.
            LengthsError: ``lengths`` does not describe the batch.
        """
        lengths = frames_of(x, self.d_model, lengths)
        x, z = self.in_proj(for_projection(self.in_proj, x, lengths)).chunk(2, dim=-1)
        return self.out_proj(self.scan(x, z, lengths))

    def initial_state(self, batch: int) -> MambaState:
        """Return the state before the first frame of ``batch`` signals."""
        like = self.conv1d.weight
        return MambaState(
            like.new_zeros(batch, self.d_inner, self.d_conv - 1),
            at_least_float32(like).new_zeros(batch, self.d_inner, self.d_state),
        )

    def forward_chunk(
        self, x: Tensor, state: MambaState | None = None
    ) -> tuple[Tensor, MambaState]:
        """Mix the next chunk of a signal; the chunks together give what the whole gives.

        Args:
            x: ``(batch, length, d_model)``, any length from 0 on.
            state: What the chunk before returned; None before the first.

        Returns:
            ``(batch, length, d_model)`` and the state to give with the next chunk.

        Raises:
            ShapeError: ``x`` has another shape, or the layer is reversed: what comes later would
                have to come first.
        """
        if self.reverse:
            raise ShapeError(
                "a reversed Mamba cannot take a signal in chunks: it starts at its end"
            )
        frames_of(x, self.d_model, None)
        x, z = self.in_proj(x).chunk(2, dim=-1)
        y, state = self.scan_chunk(x, z, state or self.initial_state(len(x)))
        return self.out_proj(y), state


def resolve_dt_rank(dt_rank: int | Literal["auto"], d_model: int) -> int:
    """Return the rank that "auto" stands for."""
    return math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in float32 if it is of half precision, else as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def frames_of(x: Tensor, d_model: int, lengths: Tensor | Lengths | None) -> Lengths | None:
    """Return the lengths of ``x``'s sequences, known to fit.

    Raises:
        ShapeError: ``x`` is not ``(batch, length, d_model)``.
        LengthsError: ``lengths`` does not describe the batch.
    """
    if x.dim() != 3 or x.shape[-1] != d_model:
        raise ShapeError(f"x must be (batch, length, {d_model}), got shape {tuple(x.shape)}")
    return fitting(lengths, x.shape[0], x.shape[1], x.device)


def masked_frames(x: Tensor, lengths: Lengths | None) -> Tensor:
    """Zero ``x`` (batch, length, channels) past each sequence's end, NaN included."""
    if lengths is None or is_full(lengths):
        return x
    return x.masked_fill(padding_mask(*lengths)[..., None], 0)


def for_projection(projection: nn.Module, x: Tensor, lengths: Lengths | None) -> Tensor:
    """Return ``x`` (batch, length, d_model) as the first projection of a mixer may read it.

    What the padding holds would reach all frames by way of the weights' gradient, or by that of
    anything that looks at more than one frame, as int8 does to choose its scale. Elsewhere it stays
    in the padding, which no operator reads.
    """
    if not torch.is_grad_enabled() and is_plain(projection, nn.Linear):
        return x
    return masked_frames(x, lengths)
