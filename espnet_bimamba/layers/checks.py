"""Checks of options at construction and, for every mixer, of a state dict at loading."""

import math
from typing import Any

from torch import Tensor, nn

from espnet_bimamba.errors import CheckpointError, OptionError
from espnet_bimamba.layers.initialization import A_INITS

# The limit of mamba-ssm's kernels, kept on every device so that a model moves freely.
MAX_D_STATE = 256


def check_mixer_options(
    d_model: object,
    d_state: object,
    d_conv: object,
    expand: object,
    dt_rank: object,
    A_init: object,
) -> None:
    """Refuse what no mixer can be built from.

    Raises:
        OptionError: An option is out of range or of the wrong type.
    """
    check_integer("d_model", d_model)
    check_integer("d_state", d_state, MAX_D_STATE)
    check_integer("d_conv", d_conv)
    check_integer("expand", expand)
    if dt_rank != "auto":
        check_integer("dt_rank", dt_rank, alternative='or "auto"')
    if A_init not in list(A_INITS):
        raise OptionError("A_init", A_init, f"one of {', '.join(A_INITS)}")


def check_integer(
    option: str, value: object, largest: int | None = None, alternative: str = ""
) -> None:
    """Refuse what is no integer from 1 to ``largest``; True is none.

    Raises:
        OptionError: ``value`` is something else; the message says that ``alternative`` is allowed.
    """
    if type(value) is int and value >= 1 and (largest is None or value <= largest):
        return
    limit = "of at least 1" if largest is None else f"from 1 to {largest}"
    raise OptionError(option, value, f"an integer {limit} {alternative}".rstrip())


def check_flag(option: str, value: object) -> None:
    """Refuse what is neither true nor false: "no" in quotes would be taken for true.

    Raises:
        OptionError: ``value`` is no bool.
    """
    if type(value) is not bool:
        raise OptionError(option, value, "true or false")


def check_rate(option: str, value: object) -> None:
    """Refuse what is no rate of dropout; 1 would leave nothing.

    Raises:
        OptionError: ``value`` is no number from 0 up to below 1.
    """
    if type(value) not in (int, float) or not 0 <= value < 1:  # type: ignore[operator]
        raise OptionError(option, value, "a number from 0 up to below 1")


def check_dt_range(dt_min: float, dt_max: float, dt_init_floor: float) -> None:
    """Refuse a range from which no initial step size can be drawn.

    Raises:
        OptionError: Not ``0 < dt_min <= dt_max``, or the floor is not positive.
    """
    if not dt_min > 0:
        raise OptionError("dt_min", dt_min, "a number above 0")
    if not dt_min <= dt_max < math.inf:
        raise OptionError("dt_max", dt_max, f"a number of at least dt_min, which is {dt_min}")
    if not dt_init_floor > 0:
        raise OptionError("dt_init_floor", dt_init_floor, "a number above 0")


def kind_of(state_dict: dict[str, Tensor], prefix: str) -> str | None:
    """Say in the words of ``encoder_conf`` what mixer was saved under ``prefix``, if any."""
    if f"{prefix}forward_mamba.A_log" in state_dict:
        fusion = "concat" if f"{prefix}fusion_proj.weight" in state_dict else "add"
        return f"extbimamba, fusion: {fusion}"
    if f"{prefix}forward_ssm.A_log" in state_dict:
        return "innbimamba"
    if f"{prefix}attention.in_proj_weight" in state_dict:
        return "attention"
    return "mamba" if f"{prefix}A_log" in state_dict else None


def refuse_other_kinds(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    """Name the cause where strict loading would list hundreds of keys; a load_state_dict hook.

    Loading that is not strict is refused as well: no key would fit, and ESPnet, which loads so
    for inference, would go on with the mixer as it was drawn.

    Raises:
        CheckpointError: The state dict was saved by a mixer of another kind.
    """
    saved = kind_of(state_dict, prefix)
    if saved not in (None, module.kind):
        raise CheckpointError(
            f"the checkpoint holds mamba_type: {saved} at {prefix.rstrip('.') or 'its root'}, "
            f"but the model is built with mamba_type: {module.kind}; set the encoder_conf to "
            "what the checkpoint was trained with"
        )
