"""Who is there, who is missing, and who is there twice."""

import multiprocessing
import socket
import time

import pytest

from tests import processes
from xlj.distributed import errors
from xlj.distributed import rendezvous

# Its processes start from one that has imported the module.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


def come(queue, place):
  try:
    rendezvous.meet(place)
    queue.put((place.process_id, "", ""))
  except (errors.StartError, errors.LostPeerError, OSError) as error:
    queue.put((place.process_id, type(error).__name__, str(error)))


def gather(ids, *, counts=None, timeout=20.0, delays=None, port=None):
  """Lets processes meet; the list of (number, error type, message)."""
  address = f"127.0.0.1:{port or processes.free_port()}"
  queue = CONTEXT.Queue()
  started = []
  for i, process_id in enumerate(ids):
    count = counts[i] if counts else max(ids) + 1
    place = rendezvous.Place(address, count, process_id, timeout)
    if delays:
      time.sleep(delays[i])
    started.append(CONTEXT.Process(target=come, args=(queue, place)))
    started[-1].start()
  found = [queue.get(timeout=60) for _ in ids]
  for process in started:
    process.join()
  return sorted(found)


@pytest.mark.parametrize("ids", [(0, 1, 2, 3), (3, 2, 1, 0)])
def test_all_meet_in_any_order(ids):
  found = gather(ids, delays=[0, 0.3, 0, 0.3])
  assert found == [(i, "", "") for i in range(4)]


def test_a_missing_process_is_named_by_all():
  found = gather((0, 1), counts=(4, 4), timeout=2.0)
  assert [f[:2] for f in found] == [(0, "LostPeerError"), (1, "LostPeerError")]
  for _, _, message in found:
    assert "processes 2 and 3 of 4 did not come" in message


def test_a_missing_coordinator_is_named():
  ((_, kind, message),) = gather((1,), counts=(2,), timeout=1.5)
  assert kind == "LostPeerError"
  assert "process 0, the coordinator, is not at 127.0.0.1:" in message


def test_a_second_coordinator_is_refused():
  # The first waits for process 1, the second finds it at its address.
  found = gather((0, 0), counts=(2, 2), timeout=3.0, delays=[0, 1.0])
  (_, *first), (_, *second) = sorted(found, key=lambda f: f[1])
  assert first[0] == "LostPeerError" and "process 1 of 2" in first[1]
  assert second[0] == "StartError"
  assert "process 0 is there twice, a second coordinator" in second[1]


def test_two_with_one_number_are_refused():
  found = gather((0, 1, 1), counts=(3, 3, 3), timeout=4.0, delays=[0, 0, 1.5])
  kinds = [f[1] for f in found]
  assert kinds.count("StartError") == 1 and "" not in kinds
  (said,) = [f[2] for f in found if f[1] == "StartError"]
  assert "process 1 is there twice" in said and "--process_id" in said


def test_another_number_of_processes_is_refused():
  found = gather((0, 1), counts=(2, 3), timeout=3.0)
  assert found[1][1] == "StartError"
  assert "started for 3 processes" in found[1][2]


def test_a_taken_port_and_a_stranger_are_named():
  with socket.create_server(("", 0)) as listener:
    port = listener.getsockname()[1]
    found = gather((0,), counts=(2,), timeout=3.0, port=port)
  assert found[0][1] == "StartError"
  assert f"port {port}" in found[0][2] and "taken" in found[0][2]


def test_strangers_who_call_do_no_harm():
  port = processes.free_port()
  queue = CONTEXT.Queue()
  places = [rendezvous.Place(f"127.0.0.1:{port}", 2, i, 20.0) for i in range(2)]
  started = [CONTEXT.Process(target=come, args=(queue, s)) for s in places]
  started[0].start()
  deadline = time.monotonic() + 20
  for text in (b"GET / HTTP/1.1\r\n\r\n", b"\xff\xfe\n", b"[1]\n", b"x" * 9000):
    while time.monotonic() < deadline:
      try:
        with socket.create_connection(("127.0.0.1", port)) as sock:
          sock.sendall(text)
        break
      except ConnectionRefusedError:  # not there yet
        time.sleep(0.05)
  started[1].start()
  assert sorted(queue.get(timeout=60) for _ in places) == [
    (0, "", ""),
    (1, "", ""),
  ]
