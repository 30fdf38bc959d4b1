"""The one constructor of the mesh."""

import jax
from jax.sharding import AxisType
import pytest

from xlj import mesh as mesh_lib
from xlj import sharding


@pytest.mark.parametrize(
  ("asked", "shape"), [(None, (1, 8)), ((2, 4), (2, 4)), ((8, 1), (8, 1))]
)
def test_shapes(asked, shape):
  mesh = mesh_lib.make_mesh(asked)
  assert mesh.axis_names == sharding.AXES
  assert tuple(mesh.shape[axis] for axis in sharding.AXES) == shape
  assert mesh.axis_types == (AxisType.Explicit,) * 2
  assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize("shape", [(2, 3), (4, 4), (1, 1)])
def test_a_shape_that_does_not_use_all_devices_is_refused(shape):
  size = shape[0] * shape[1]
  message = (
    rf"mesh.shape \({shape[0]}, {shape[1]}\) asks for {size} devices, but"
    " there are 8; leave mesh.shape empty"
  )
  with pytest.raises(ValueError, match=message):
    mesh_lib.make_mesh(shape)
