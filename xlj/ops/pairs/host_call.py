"""Calls of the compiled loops from inside a jitted function, in place.

XLA hands the buffers of a call to a C function; that of Python's own foreign
function interface makes NumPy arrays of them, without a copy, and threads share
out the blocks. Where an argument is donated, its result is the same
memory. The structures are those of `xla/ffi/api/c_api.h`, version 0.

Legend: see `xlj.ops.pairs.label_pairs`.
"""

from collections.abc import Callable
from concurrent import futures
import ctypes
import functools
import traceback
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xlj import processors

_METADATA = 1  # the kind of extension by which XLA asks for the version
_INTERNAL = 13  # the code of an error that is a fault of ours
_DTYPES = {
  4: np.dtype(np.int32),
  7: np.dtype(np.uint16),
  8: np.dtype(np.uint32),
  11: np.dtype(np.float32),
}
_Pointer = ctypes.c_void_p
_Arrays = list[np.ndarray]


class _Buffer(ctypes.Structure):
  _fields_ = (
    ("struct_size", ctypes.c_size_t),
    ("extension", _Pointer),
    ("dtype", ctypes.c_int),
    ("data", _Pointer),
    ("rank", ctypes.c_int64),
    ("dims", ctypes.POINTER(ctypes.c_int64)),
  )


class _Buffers(ctypes.Structure):
  _fields_ = (
    ("struct_size", ctypes.c_size_t),
    ("extension", _Pointer),
    ("size", ctypes.c_int64),
    ("types", _Pointer),
    ("buffers", ctypes.POINTER(ctypes.POINTER(_Buffer))),
  )


class _Version(ctypes.Structure):
  _fields_ = (
    ("struct_size", ctypes.c_size_t),
    ("extension", _Pointer),
    ("major", ctypes.c_int),
    ("minor", ctypes.c_int),
  )


class _Metadata(ctypes.Structure):
  _fields_ = (("struct_size", ctypes.c_size_t), ("version", _Version))


class _Extension(ctypes.Structure):
  _fields_ = (
    ("struct_size", ctypes.c_size_t),
    ("type", ctypes.c_int),
    ("next", _Pointer),
    ("metadata", ctypes.POINTER(_Metadata)),
  )


class _Error(ctypes.Structure):
  _fields_ = (
    ("struct_size", ctypes.c_size_t),
    ("extension", _Pointer),
    ("message", ctypes.c_char_p),
    ("code", ctypes.c_int),
  )


class _Api(ctypes.Structure):
  _fields_ = (
    ("struct_size", ctypes.c_size_t),
    ("extension", _Pointer),
    ("version", _Version),
    ("internal", _Pointer),
    ("create_error", ctypes.CFUNCTYPE(_Pointer, ctypes.POINTER(_Error))),
  )


class _Call(ctypes.Structure):
  _fields_ = (
    ("struct_size", ctypes.c_size_t),
    ("extension", ctypes.POINTER(_Extension)),
    ("api", ctypes.POINTER(_Api)),
    ("context", _Pointer),
    ("stage", ctypes.c_int),
    ("args", _Buffers),
    ("results", _Buffers),
  )


_Handler = ctypes.CFUNCTYPE(_Pointer, ctypes.POINTER(_Call))


def logits(shape: jax.ShapeDtypeStruct, *args: jax.Array) -> jax.Array:
  """See `label_pairs.logits`; `[N, B * R]` of the given shape."""
  return _call("xlj_pairs_logits", shape, {})(*args)


def add_outer(
  starts, columns, weights, ids, values, lengths, grad, scale
) -> jax.Array:
  """See `label_pairs.add_outer`."""
  call = _call("xlj_pairs_add_outer", _like(weights), {2: 0})
  return call(
    *(starts, columns, weights, ids, values, lengths, grad, scale[None])
  )


def step_by_example(
  starts, columns, weights, bias, *batch
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """See `label_pairs.step_by_example`."""
  loss = jax.ShapeDtypeStruct((len(starts),), jnp.float32)
  results = _like(weights), _like(bias), loss
  call = _call("xlj_pairs_step_by_example", results, {2: 0, 3: 1})
  return call(starts, columns, weights, bias, *batch)


def _like(a: jax.Array) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(a.shape, a.dtype)


def _call(name: str, results: Any, aliases: dict[int, int]) -> Any:
  _register()
  return jax.ffi.ffi_call(name, results, input_output_aliases=aliases)


def _logits(args: _Arrays, results: _Arrays) -> Callable[[int], None]:
  starts, columns, weights, *batch = args
  (out,) = results
  by_block = out.reshape(len(out), len(starts), -1)

  def block(b: int) -> None:
    _loops().logits(
      *(starts[b], columns[b], weights[b], *batch, by_block[:, b])
    )

  return block


def _add_outer(args: _Arrays, results: _Arrays) -> Callable[[int], None]:
  starts, columns, _, *batch, grad, scale = args
  (weights,) = results
  by_block = grad.reshape(len(grad), len(starts), -1)

  def block(b: int) -> None:
    _loops().add_outer(
      *(starts[b], columns[b], weights[b], *batch, by_block[:, b], scale[0])
    )

  return block


def _step_by_example(args: _Arrays, results: _Arrays) -> Callable[[int], None]:
  starts, columns, _, _, row_rates, *batch = args
  *features, positives, example_weights, rates = batch
  weights, bias, loss = results
  bias, row_rates = (a.reshape(len(starts), -1) for a in (bias, row_rates))

  def block(b: int) -> None:
    loss[b] = _loops().step_by_example(
      *(starts[b], columns[b], weights[b], bias[b], row_rates[b], *features),
      *(positives, b * bias.shape[1], example_weights, rates),
    )

  return block


@functools.cache
def _loops() -> Any:
  """The compiled loops; importing the compiler takes a while."""
  from xlj.ops.pairs import host_loops

  return host_loops


def _over_blocks(block: Callable[[int], None], count: int) -> None:
  """Runs a function of each block, by as many threads as there are cores."""
  for _ in _threads().map(block, range(count)):
    pass


@functools.cache
def _threads() -> futures.ThreadPoolExecutor:
  return futures.ThreadPoolExecutor(processors.usable(), "xlj-pairs")


def _handler(
  run: Callable[[_Arrays, _Arrays], Callable[[int], None]],
) -> Any:
  """A function that XLA can call.

  Args:
    run: From arguments and results to a function of each block. A result that
      is an argument's alias is the same memory.

  Returns:
    What keeps the function, and has its address.
  """

  def handle(pointer: Any) -> int | None:
    call = pointer.contents
    extension = call.extension
    if extension and extension.contents.type == _METADATA:
      ours = extension.contents.metadata.contents.version
      ours.major, ours.minor = _version(call)
      return None
    try:
      args, results = _arrays(call.args), _arrays(call.results)
      _over_blocks(run(args, results), len(args[0]))  # `starts` is by block
    except Exception:
      message = traceback.format_exc().encode()
      size = ctypes.sizeof(_Error)
      error = _Error(size, None, message, _INTERNAL)
      return call.api.contents.create_error(ctypes.byref(error))
    return None

  return _Handler(handle)


def _version(call: _Call) -> tuple[int, int]:
  """The version of the interface that XLA has."""
  version = call.api.contents.version
  return version.major, version.minor


def _arrays(buffers: _Buffers) -> _Arrays:
  """Views of buffers."""
  found = []
  for i in range(buffers.size):
    buffer = buffers.buffers[i].contents
    shape = tuple(buffer.dims[: buffer.rank])
    dtype = _DTYPES[buffer.dtype]
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if not size:
      found.append(np.empty(shape, dtype))
      continue
    memory: Any = (ctypes.c_byte * size).from_address(buffer.data)
    found.append(np.frombuffer(memory, dtype).reshape(shape))
  return found


@functools.cache
def _register() -> list[Any]:
  """Makes the functions known to XLA, once; what is returned keeps them."""
  new_capsule = ctypes.pythonapi.PyCapsule_New
  new_capsule.restype = ctypes.py_object
  new_capsule.argtypes = (_Pointer, ctypes.c_char_p, _Pointer)
  handlers = []
  for name, run in (
    ("xlj_pairs_logits", _logits),
    ("xlj_pairs_add_outer", _add_outer),
    ("xlj_pairs_step_by_example", _step_by_example),
  ):
    handler = _handler(run)
    address = ctypes.cast(handler, _Pointer).value
    capsule = new_capsule(address, b"xla._CUSTOM_CALL_TARGET", None)
    jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    handlers.append(handler)
  return handlers
