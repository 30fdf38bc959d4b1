"""The benchmark of the spherical head says what it measured."""

import argparse

import jax
import pytest

from benchmarks import spherical
from xlj import mesh as mesh_lib


@pytest.mark.slow
def test_a_ratio_is_of_what_its_name_says():
  options = argparse.Namespace(D=4, N=8, steps=2, dense_steps=2, dense_up_to=64)
  with jax.set_mesh(mesh_lib.make_mesh()):
    record = spherical.measure(64, options)
  ratio = record["factored_s"] / record["dense_s"]
  assert record["factored_vs_dense"] == ratio
  assert f"{1 / ratio:.1f} times as long" in spherical.line(record)
