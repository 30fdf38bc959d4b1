"""Starts the processes of a job as one; `initialize` comes before all of JAX.

The coordinator's address, the number of processes and the number of this one
are given, by flags or as Kubeflow Trainer does (`JAX_COORDINATOR_ADDRESS`,
`JAX_NUM_PROCESSES`, `JAX_PROCESS_ID`), or found where JAX finds them: under
Slurm, Open MPI, Kubernetes indexed jobs (and JobSets), and on TPU pods; or in
what SkyPilot and dstack tell their nodes. Else the process is alone.
"""

from __future__ import annotations

from collections.abc import Sequence
import os
from typing import Any

from absl import logging
import jax

from xlj.distributed import addresses
from xlj.distributed import errors
from xlj.distributed import jax_private
from xlj.distributed import rendezvous
from xlj.distributed import watch

# Where schedulers that JAX does not know tell each node its place: addresses,
# of process 0 first; the number of nodes, and that of this one.
_SCHEDULERS = (
  ("SKYPILOT_NODE_IPS", "SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK"),
  ("DSTACK_MASTER_NODE_IP", "DSTACK_NODES_NUM", "DSTACK_NODE_RANK"),
)
_PORT = "4321"  # of process 0 there


def initialize(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  initialization_timeout: float = 300,
  peer_timeout: float = 60,
  stall_timeout: float = 1800,
) -> None:
  """Makes this process one of a job, if there is one; the first thing to do.

  Args:
    coordinator_address: `host:port` of process 0, any free port; the same in
      all processes.
    num_processes: Processes of the job.
    process_id: Number of this one, from 0.
    initialization_timeout: Seconds to wait for all processes.
    peer_timeout: Seconds without a sign of life after which a process is lost
      and the job ends.
    stall_timeout: Seconds without a step after which the job ends (see
      `watch`).

  Raises:
    StartError: If the three do not make a place in a job, or two processes
      have the same.
    LostPeerError: If a process is missing.
  """
  place, local_devices = _place(
    coordinator_address, num_processes, process_id, initialization_timeout
  )
  if place is None or place.num_processes == 1:
    return
  rendezvous.meet(place)
  # JAX, too, would listen at all addresses of this host.
  bind = place.address if addresses.own(place.host) else None
  bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", bind)
  # JAX notices lost processes too, but ends this one without a name for them.
  patience = max(2 * int(peer_timeout), int(peer_timeout) + 30)
  jax.distributed.initialize(
    place.address,
    place.num_processes,
    place.process_id,
    local_devices,
    cluster_detection_method="deactivate",
    initialization_timeout=max(1, int(initialization_timeout)),
    heartbeat_timeout_seconds=patience,
    coordinator_bind_address=bind,
  )
  watch.start(place.address, peer_timeout, stall_timeout)
  if place.process_id == 0:
    logging.info(
      "All %d processes are here, at %s", place.num_processes, place.address
    )


def _place(
  address: str | None,
  num_processes: int | None,
  process_id: int | None,
  timeout: float,
) -> tuple[rendezvous.Place | None, Sequence[int] | None]:
  """The place in the job, and the devices of this process, None for all."""
  devices = None
  given = {
    "--coordinator_address": address,
    "--num_processes": num_processes,
    "--process_id": process_id,
  }
  if None in given.values():
    address, num_processes, process_id, devices = _detected(
      address, num_processes, process_id, timeout
    )
    found = dict(zip(given, (address, num_processes, process_id)))
    missing = [name for name, value in found.items() if value is None]
    if len(missing) == len(found):
      return None, None
    if missing:
      there = [name for name in found if name not in missing]
      raise errors.StartError(
        f"{' and '.join(there)} without {' and '.join(missing)}; give all"
        " three, or none of them on a machine that is alone"
      )
  assert address is not None and num_processes is not None
  assert process_id is not None
  host, _, port = address.rpartition(":")
  if not host or not port.isdigit():
    raise errors.StartError(
      f"--coordinator_address={address} is not HOST:PORT, as in 10.0.0.1:1234"
    )
  if not 0 <= process_id < num_processes:
    raise errors.StartError(
      f"--process_id={process_id} is not in [0, {num_processes - 1}], the"
      f" numbers of --num_processes={num_processes}"
    )
  return rendezvous.Place(address, num_processes, process_id, timeout), devices


def _detected(
  address: str | None,
  num_processes: int | None,
  process_id: int | None,
  timeout: float,
) -> tuple[str | None, int | None, int | None, Sequence[int] | None]:
  """What the environment says about those that are None."""
  address = address or os.environ.get("JAX_COORDINATOR_ADDRESS")
  if num_processes is None:
    num_processes = _number("JAX_NUM_PROCESSES")
  if process_id is None:
    process_id = _number("JAX_PROCESS_ID")
  if None not in (address, num_processes, process_id):
    return address, num_processes, process_id, None
  port = os.environ.get("JAX_COORDINATOR_PORT")
  cluster = _cluster()
  if cluster is None:
    for ips, count, number in _SCHEDULERS:
      if first := os.environ.get(ips, "").split():
        address = address or f"{first[0]}:{port or _PORT}"
        if num_processes is None:
          num_processes = _number(count)
        if process_id is None:
          process_id = _number(number)
    return address, num_processes, process_id, None
  if address is None:
    address = cluster.get_coordinator_address(int(timeout), port)
  if num_processes is None:
    num_processes = cluster.get_process_count()
  if process_id is None:
    process_id = cluster.get_process_id()
  devices = None
  local = cluster.get_local_process_id()
  if local is not None and not os.environ.get("JAX_LOCAL_DEVICE_IDS"):
    devices = [local]  # a process per device, as in JAX
  return address, num_processes, process_id, devices


def _number(variable: str) -> int | None:
  """The number in an environment variable; None if it is not set."""
  value = os.environ.get(variable)
  if value and not value.isdigit():
    raise errors.StartError(f"{variable}={value} is not a number")
  return int(value) if value else None


def _cluster() -> Any:
  """JAX's description of the cluster; None if there is none."""
  for cluster in jax_private.clusters():
    in_kubernetes = "k8s" in cluster.__module__
    # Most pods are not of an indexed job, for which alone JAX has an answer.
    if in_kubernetes and "JOB_COMPLETION_INDEX" not in os.environ:
      continue
    if not cluster.opt_in_only_method and cluster.is_env_present():
      return cluster
  return None
