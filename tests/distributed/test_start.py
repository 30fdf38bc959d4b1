"""How a process finds its place in a job."""

import os

import jax
import pytest

from xlj.distributed import errors
from xlj.distributed import start

CLUSTER = (
  *("SLURM_", "OMPI_", "JOB_COMPLETION_INDEX", "KUBERNETES_", "JAX_"),
  *("SKYPILOT_", "DSTACK_"),
)


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


JAX_RUNTIME = {
  "JAX_COORDINATOR_ADDRESS": "xlj-node-0-0.xlj:29500",
  "JAX_NUM_PROCESSES": "4",
  "JAX_PROCESS_ID": "2",
}
SKYPILOT = {
  "SKYPILOT_NODE_IPS": "10.1.0.1\n10.1.0.2\n10.1.0.3\n10.1.0.4",
  "SKYPILOT_NUM_NODES": "4",
  "SKYPILOT_NODE_RANK": "2",
}
DSTACK = {
  "DSTACK_NODES_IPS": "10.1.0.1\n10.1.0.2\n10.1.0.3\n10.1.0.4",
  "DSTACK_MASTER_NODE_IP": "10.1.0.1",
  "DSTACK_NODES_NUM": "4",
  "DSTACK_NODE_RANK": "2",
}


def tell(monkeypatch, variables):
  for name, value in variables.items():
    monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
  "variables,address",
  [
    (JAX_RUNTIME, "xlj-node-0-0.xlj:29500"),
    (SKYPILOT, "10.1.0.1:4321"),
    (DSTACK, "10.1.0.1:4321"),
  ],
  ids=["kubeflow", "skypilot", "dstack"],
)
def test_the_place_that_a_scheduler_tells(monkeypatch, variables, address):
  # On the pods of an indexed job, without asking Kubernetes for its place.
  in_kubernetes = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
  if variables is JAX_RUNTIME:
    in_kubernetes["JOB_COMPLETION_INDEX"] = "2"
    monkeypatch.setattr(start, "_cluster", lambda: pytest.fail("asked"))
  tell(monkeypatch, {**in_kubernetes, **variables})
  found, devices = place(None, None, None)
  assert found.address == address
  assert (found.num_processes, found.process_id) == (4, 2)
  assert devices is None  # all of the node
  found, _ = place("other:99", 3, 1)  # flags win
  assert (found.address, found.num_processes) == ("other:99", 3)
  found, _ = place(None, None, 1)
  assert (found.address, found.process_id) == (address, 1)


def test_another_port_of_the_coordinator(monkeypatch):
  tell(monkeypatch, {**SKYPILOT, "JAX_COORDINATOR_PORT": "777"})
  found, _ = place(None, None, None)
  assert found.address == "10.1.0.1:777"


def test_mpirun_on_nodes_of_a_scheduler_counts(monkeypatch):
  """It starts the processes; the scheduler has started only it."""
  variables = {
    "OMPI_MCA_orte_hnp_uri": "3142.0;tcp://10.20.30.40:5678",
    "OMPI_COMM_WORLD_SIZE": "32",
    "OMPI_COMM_WORLD_RANK": "17",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
  }
  tell(monkeypatch, {**DSTACK, **variables})
  found, devices = place(None, None, None)
  assert (found.num_processes, found.process_id) == (32, 17)
  assert devices == [1]


def test_a_node_of_one_is_alone(monkeypatch):
  one = {"SKYPILOT_NODE_IPS": "10.1.0.1", "SKYPILOT_NUM_NODES": "1"}
  tell(monkeypatch, {**one, "SKYPILOT_NODE_RANK": "0"})
  start.initialize()  # does nothing


def test_a_variable_that_is_no_number_is_named(monkeypatch):
  tell(monkeypatch, {**SKYPILOT, "SKYPILOT_NODE_RANK": "first"})
  with pytest.raises(errors.StartError) as caught:
    place(None, None, None)
  assert "SKYPILOT_NODE_RANK=first is not a number" in str(caught.value)


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
