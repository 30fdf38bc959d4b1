"""How a process finds its place in a job."""

import os

import jax
import pytest

from xlj.distributed import errors
from xlj.distributed import start

CLUSTER = ("SLURM_", "OMPI_", "JOB_COMPLETION_INDEX", "KUBERNETES_", "JAX_")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
  for name in list(os.environ):
    if name.startswith(CLUSTER) and name != "JAX_PLATFORMS":
      monkeypatch.delenv(name)


def place(*place):
  return start._place(*place, 5.0)


def test_alone_without_flags_and_cluster():
  assert place(None, None, None) == (None, None)
  start.initialize()  # does nothing
  start.initialize("localhost:1", 1, 0)


@pytest.mark.parametrize(
  "place,message",
  [
    (("host:1", None, None), "without --num_processes and --process_id"),
    ((None, 2, 0), "without --coordinator_address"),
    (("host", 2, 0), "is not HOST:PORT"),
    (("host:x", 2, 0), "is not HOST:PORT"),
    (("host:1", 2, 2), "--process_id=2 is not in [0, 1]"),
  ],
)
def test_half_a_place_is_refused(place, message):
  with pytest.raises(errors.StartError) as caught:
    start.initialize(*place)
  assert message in str(caught.value)


def test_the_place_under_slurm(monkeypatch):
  for name, value in {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_NODELIST": "node[07-09]",
    "SLURM_NTASKS": "6",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
  }.items():
    monkeypatch.setenv(name, value)
  found, devices = place(None, None, None)
  assert found.host == "node07" and found.port > 1024
  assert (found.num_processes, found.process_id) == (6, 3)
  assert devices == [1]
  found, _ = place("other:99", None, None)
  assert found.address == "other:99" and found.process_id == 3


def test_the_place_under_open_mpi(monkeypatch):
  uri = "3142.0;tcp://10.20.30.40:5678"
  for name, value in {
    "OMPI_MCA_orte_hnp_uri": uri,
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
  }.items():
    monkeypatch.setenv(name, value)
  found, _ = place(None, None, None)
  assert found.host == "10.20.30.40"
  assert (found.num_processes, found.process_id) == (4, 2)


def test_a_pod_that_is_not_of_an_indexed_job_is_alone(monkeypatch):
  monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
  assert place(None, None, None) == (None, None)


@pytest.mark.parametrize(
  "address,bind", [("127.0.0.1:9", "127.0.0.1:9"), ("192.0.2.1:9", None)]
)
def test_jax_listens_where_the_others_call(monkeypatch, address, bind):
  given = {}
  monkeypatch.setattr(start.rendezvous, "meet", lambda _: None)
  monkeypatch.setattr(start.watch, "start", lambda *_: None)
  monkeypatch.setattr(
    jax.distributed, "initialize", lambda *_, **kwargs: given.update(kwargs)
  )
  start.initialize(address, 2, 0)
  assert given["coordinator_bind_address"] == bind
