"""What Triton's interpreter does unlike a card, put right for the tests, and what makes it slow.

The interpreter runs kernels in NumPy, where the test process has ``TRITON_INTERPRET=1`` from its
start. Both corrections concern the interpreter alone; kernels are what users run.
"""

import numpy as np
import torch


def correct():
    """Apply both corrections to the interpreter of this process."""
    from triton.runtime import interpreter

    interpreter._convert_float = _rounding_to_nearest(interpreter._convert_float)
    interpreter._patch_lang = _once_a_launch(interpreter._patch_lang)


def _rounding_to_nearest(convert):
    """Round float32 to bfloat16 as a card does: to the nearest, ties to even.

    The interpreter cuts the lower half off, which is twice the error, and loses the carry.
    """

    def converted(value, from_dtype, to_dtype, mode):
        if (str(from_dtype), str(to_dtype)) != ("fp32", "bf16"):
            return convert(value, from_dtype, to_dtype, mode)
        # A copy: what is broadcast has no strides that torch takes.
        rounded = torch.from_numpy(np.array(value, np.float32)).bfloat16()
        return rounded.view(torch.int16).numpy().view(np.uint16)

    return converted


def _once_a_launch(patch):
    """Make the language's functions run in NumPy once a launch and module.

    The interpreter does it again at each call of a function by a kernel, which takes most of its
    time. What a launch has changed is undone at its end, as before.
    """
    done = {}

    def patched(function):
        if function.__module__ in done:
            return None
        outermost = not done
        scope = done[function.__module__] = patch(function)
        if outermost:
            restore = scope.restore

            def restore_all():
                done.clear()
                restore()

            scope.restore = restore_all
        return scope

    return patched
