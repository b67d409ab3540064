"""Work of the CPU kernels on torch's own OpenMP threads.

Torch's threads stay awake for milliseconds after each product, waiting for the next one. Threads
of ours would share the cores with them, and lose; a region of OpenMP's runs on those very threads
instead. Kernels are compiled by Numba, which knows nothing of OpenMP: :func:`share_out` builds the
function that OpenMP calls.
"""

import ctypes
import functools
from typing import Any, NamedTuple

import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# Ranges of work items for each thread: few, but enough that a thread which the system holds up
# leaves the rest to the others.
_RANGES = 4

_INT32, _INT64, _POINTER = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()


class Team(NamedTuple):
    """Who works on the items ``first .. last``.

    Attributes:
        fork: Address of OpenMP's ``GOMP_parallel``; 0 if the caller works alone.
        threads: How many threads to ask for.
        first: The first item.
        last: The one after the last item.
    """

    fork: int
    threads: int
    first: int
    last: int


@functools.cache
def torch_fork() -> int:
    """Return the address of ``GOMP_parallel`` in the OpenMP that torch uses; 0 if it has none.

    GNU's, LLVM's and Intel's OpenMP have it on Linux. It is looked for among what torch's own
    library is linked to: another copy of OpenMP in the process would start threads of its own.
    """
    try:
        return ctypes.cast(ctypes.CDLL(torch._C.__file__).GOMP_parallel, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0


@njit
def share_out(body: Any, team: Team, args: tuple) -> None:
    """Call ``body(first, last, *args)`` on ranges that together cover the team's items.

    Raises:
        MemoryError: A call failed, which for want of memory alone it can.
    """
    if _run(body, team.fork, team.threads, team.first, team.last, args):
        raise MemoryError("a kernel found no memory to work in")


@intrinsic
def _run(
    typing: Any, body: Any, fork: Any, threads: Any, first: Any, last: Any, args: Any
) -> tuple[Any, Any]:
    """Run ``body`` on ranges taken one by one; return how many calls failed."""
    of_body = body.get_call_type(typing, (types.int64, types.int64, *args), {})

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _, fork, threads, first, last, packed = values
        compiled = body.dispatcher.get_compile_result(of_body)
        context.active_code_library.add_linking_library(compiled.library)
        # Next range, number of ranges, first item, last item, failures; then the arguments.
        shared = ir.LiteralStructType([*[_INT64] * 5, packed.type])
        work = cgutils.alloca_once(builder, shared)
        items = builder.sub(last, first)
        most = builder.mul(threads, _INT64(_RANGES))
        fewer = builder.icmp_signed("<", items, most)
        ranges = builder.select(fewer, items, most)
        for index, value in enumerate([_INT64(0), ranges, first, last, _INT64(0), packed]):
            builder.store(value, _field(builder, work, index))
        region = _region(context, builder, compiled.fndesc, of_body, shared, args)
        data = builder.bitcast(work, _POINTER)
        alone = builder.icmp_signed("==", fork, _INT64(0))
        with builder.if_else(alone) as (here, in_team):
            with here:
                builder.call(region, [data])
            with in_team:
                kind = ir.FunctionType(ir.VoidType(), [region.type, _POINTER, _INT32, _INT32])
                parallel = builder.inttoptr(fork, kind.as_pointer())
                count = builder.trunc(threads, _INT32)
                builder.call(parallel, [region, data, count, _INT32(0)])
        return builder.load(_field(builder, work, 4))

    return types.int64(body, fork, threads, first, last, args), codegen


def _field(builder: Any, work: Any, index: int) -> Any:
    return builder.gep(work, [_INT32(0), _INT32(index)], inbounds=True)


def _region(
    context: Any, caller: Any, descriptor: Any, signature: Any, shared: Any, args: Any
) -> Any:
    """Declare what each thread runs: it takes ranges until there are no more.

    So it does not matter how many threads come, nor when.
    """
    kind = ir.FunctionType(ir.VoidType(), [_POINTER])
    name = caller.module.get_unique_name(f"{descriptor.mangled_name}.region")
    region = ir.Function(caller.module, kind, name)
    region.linkage = "internal"
    builder = ir.IRBuilder(region.append_basic_block("entry"))
    work = builder.bitcast(region.args[0], shared.as_pointer())
    _, ranges, first, last = (builder.load(_field(builder, work, i)) for i in range(4))
    packed = builder.load(_field(builder, work, 5))
    values = cgutils.unpack_tuple(builder, packed, len(args))
    items = builder.sub(last, first)
    loop, call, done = (region.append_basic_block(name) for name in ("loop", "call", "done"))
    builder.branch(loop)

    builder.position_at_end(loop)
    taken = builder.atomic_rmw("add", _field(builder, work, 0), _INT64(1), "monotonic")
    builder.cbranch(builder.icmp_signed("<", taken, ranges), call, done)

    builder.position_at_end(call)
    begin, end = (
        builder.add(first, builder.sdiv(builder.mul(items, index), ranges))
        for index in (taken, builder.add(taken, _INT64(1)))
    )
    status, _ = context.call_internal_no_propagate(
        builder, descriptor, signature, [begin, end, *values]
    )
    failed = builder.zext(status.is_error, _INT64)
    builder.atomic_rmw("add", _field(builder, work, 4), failed, "monotonic")
    builder.branch(loop)

    builder.position_at_end(done)
    builder.ret_void()
    return region
