"""Reading in pieces: boxes that tile, few bytes at a time."""

import jax
import numpy as np
import pytest

from tests import meshes
from tests.checkpoint import states
from xlj import sharding
from xlj.checkpoint import checkpointer
from xlj.checkpoint import steps
from xlj.checkpoint import stream


@pytest.mark.parametrize(
  ("box", "chunks", "elements"),
  [
    (((0, 40), (0, 3)), (5, 3), 30),
    (((3, 37), (1, 8)), (7, 2), 9),
    (((0, 5), (16, 48)), (5, 16), 20),
    (((0, 11),), (11,), 4),  # chunks larger than pieces
    (((0, 1), (5, 6)), (4, 4), 1),
    ((), (), 1),
    (((0, 0), (0, 3)), (1, 3), 4),
  ],
)
def test_boxes_tile_and_are_small(box, chunks, elements):
  stops = [stop for _, stop in box]
  count = np.zeros(stops, int)
  for piece in stream.boxes(box, chunks, elements):
    part = tuple(slice(a, b) for a, b in piece)
    assert count[part].size <= elements
    count[part] += 1
  inside = tuple(slice(a, b) for a, b in box)
  assert (count[inside] == 1).all() and count.sum() == count[inside].size


def test_cuts_are_at_chunks():
  pieces = list(stream.boxes(((10, 64), (0, 4)), (10, 4), 40))
  assert {a % 10 for (a, _), _ in pieces} == {0}


@pytest.mark.parametrize("saved_on", [(1, 1), (8, 1)])
def test_many_small_pieces_make_the_same_arrays(
  saved_on, tmp_path, monkeypatch
):
  rng = np.random.default_rng(0)
  arrays = {
    "rows": rng.normal(size=(64, 7)).astype(np.float32),
    "wide": rng.integers(0, 255, (9, 32)).astype(np.uint8),
  }
  specs = {"rows": sharding.LABELS, "wide": sharding.P(None, sharding.AXES)}
  monkeypatch.setattr(stream, "PIECE_BYTES", 64)
  with checkpointer.Checkpointer(tmp_path) as keeper:
    with meshes.mesh(saved_on) as mesh:
      placed = jax.device_put(arrays, sharding.named(mesh, specs))
      keeper.save(1, placed, {}, {})
  for shape in meshes.SHAPES:
    with meshes.mesh(shape) as mesh:
      wanted = {
        name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=target)
        for (name, a), target in zip(
          arrays.items(), sharding.named(mesh, specs).values()
        )
      }
      found = stream.read(steps.resolve(tmp_path) / "1" / "model", wanted)
    states.assert_same_bits(found, arrays)


def test_shards_of_one_piece_are_put_there_without_a_program(tmp_path, caplog):
  """Else each array is compiled for, on each of the devices."""
  rows = np.arange(50, dtype=np.float32).reshape(10, 5)  # of 64
  with checkpointer.Checkpointer(tmp_path) as keeper:
    with meshes.mesh((1, 1)) as mesh:
      target = jax.NamedSharding(mesh, sharding.LABELS)
      keeper.save(1, {"rows": jax.device_put(rows, target)}, {}, {})
  with meshes.mesh((2, 4)) as mesh, jax.log_compiles():
    target = jax.NamedSharding(mesh, sharding.LABELS)
    wanted = {"rows": jax.ShapeDtypeStruct((64, 5), "float32", sharding=target)}
    directory = steps.resolve(tmp_path) / "1" / "model"
    found = stream.read(directory, wanted, {"rows": 10})["rows"]
  assert found.sharding == target and not caplog.records
  np.testing.assert_array_equal(found, np.pad(rows, ((0, 54), (0, 0))))
