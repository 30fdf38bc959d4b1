"""Who is there, who is missing, and who is there twice."""

from concurrent import futures
import contextlib
import dataclasses
import json
import multiprocessing
import socket
import time

import pytest

from tests import processes
from xlj.distributed import addresses
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_second_coordinator_is_refused():
  # The first waits for process 1, the second finds it at its address.
  found = gather((0, 0), counts=(2, 2), timeout=3.0, delays=[0, 1.0])
  (_, *first), (_, *second) = sorted(found, key=lambda f: f[1])
  assert first[0] == "LostPeerError" and "process 1 of 2" in first[1]
  assert second[0] == "StartError"
  assert "process 0 is there twice, a second coordinator" in second[1]


@pytest.mark.slow
def test_two_with_one_number_are_refused():
  found = gather((0, 1, 1), counts=(3, 3, 3), timeout=4.0, delays=[0, 0, 1.5])
  kinds = [f[1] for f in found]
  assert kinds.count("StartError") == 1 and "" not in kinds
  (said,) = [f[2] for f in found if f[1] == "StartError"]
  assert "process 1 is there twice" in said and "--process_id" in said


@pytest.mark.slow
def test_another_number_of_processes_is_refused():
  found = gather((0, 1), counts=(2, 3), timeout=3.0)
  assert found[1][1] == "StartError"
  assert "started for 3 processes" in found[1][2]


@pytest.mark.slow
def test_a_taken_port_and_a_stranger_are_named():
  with socket.create_server(("", 0)) as listener:
    port = listener.getsockname()[1]
    found = gather((0,), counts=(2,), timeout=3.0, port=port)
  assert found[0][1] == "StartError"
  assert f"port {port}" in found[0][2] and "taken" in found[0][2]


HELLO = {"job": "xlj", "process": 1, "count": 2, "who": "x"}
STRANGERS = [
  b"GET / HTTP/1.1\r\n\r\n",
  b"\xff\xfe\n",
  b"[1]\n",
  b"7\n",
  b"x" * 9000,
  b"[" * 4000 + b"\n",
  b"{}\n",
  *(
    json.dumps({**HELLO, **changes}).encode() + b"\n"
    for changes in (
      {"process": [1]},
      {"process": "1"},
      {"process": True},
      {"process": -1},
      {"process": 2},
      {"count": None},
      {"who": 5},
      {"who": "x" * 1000},
      {"who": "a line\nand another"},
      {"job": {}},
    )
  ),
]


def call(port):
  """Connects as soon as somebody listens."""
  while True:
    try:
      return socket.create_connection(("127.0.0.1", port), 20)
    except ConnectionRefusedError:  # not there yet
      time.sleep(0.02)


@pytest.fixture
def host():
  """The port of a process 0 of two, that waits in a thread until it ends."""
  place = rendezvous.Place(f"127.0.0.1:{processes.free_port()}", 2, 0, 20.0)
  with futures.ThreadPoolExecutor() as pool:
    waiting = pool.submit(rendezvous.meet, place)
    call(place.port).close()
    yield place.port
    rendezvous.meet(dataclasses.replace(place, process_id=1))
    waiting.result()


def test_strangers_who_call_are_closed_and_do_no_harm(host):
  for text in STRANGERS:
    with call(host) as sock:
      sock.sendall(text)
      with contextlib.suppress(ConnectionResetError):
        assert sock.recv(1) == b"", text


def test_who_says_hello_more_than_once_is_there_until_it_leaves(host):
  hello = json.dumps(HELLO).encode() + b"\n"
  with call(host) as sock:
    sock.sendall(json.dumps({**HELLO, "process": 0}).encode() + b"\n")
    assert b"a second coordinator" in sock.recv(4096)
  for text in (hello, hello[:-1]):  # what is not a line yet keeps it open
    with call(host) as sock:
      sock.sendall(text + hello)


def test_who_says_nothing_is_closed(monkeypatch, host):
  monkeypatch.setattr(rendezvous, "_CALL_S", 0.2)
  with call(host) as sock:
    assert sock.recv(1) == b""


@pytest.mark.parametrize(
  "text",
  [
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"7\n",
    b"{}\n",
    b'{"missing": [], "error": "come in", "go": false}\n',
    b'{"missing": 3, "error": "", "again": false, "go": false}\n',
  ],
)
def test_a_stranger_at_the_coordinators_address_is_not_believed(text):
  def answer(listener):
    with contextlib.suppress(OSError):  # until it is closed
      while True:
        with listener.accept()[0] as sock:
          sock.sendall(text)
          sock.recv(4096)

  with futures.ThreadPoolExecutor() as pool:
    listener = socket.create_server(("127.0.0.1", 0))
    pool.submit(answer, listener)
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    try:
      with pytest.raises(errors.LostPeerError, match="process 0, the coord"):
        rendezvous.meet(rendezvous.Place(address, 2, 1, 0.5))
      with pytest.raises(errors.StartError, match="taken by another program"):
        rendezvous.meet(rendezvous.Place(address, 2, 0, 0.5))
    finally:
      listener.shutdown(socket.SHUT_RDWR)
      listener.close()


def test_many_missing_processes_are_named():
  found = gather((0, 1), counts=(3000, 3000), timeout=2.0)
  for _, kind, message in found:
    assert kind == "LostPeerError"
    assert "2998 and 2999 of 3000 did not come" in message


# --- addresses ---------------------------------------------------------------


def test_process_0_listens_at_no_other_address(host):
  with pytest.raises(ConnectionRefusedError):
    socket.create_connection(("127.0.0.2", host), 20)


def test_addresses_of_this_host(monkeypatch):
  assert addresses.own("127.0.0.1") == ["127.0.0.1"]
  assert "127.0.0.1" in addresses.own("localhost")
  assert not addresses.own("192.0.2.1")  # for documents; nobody has it
  assert not addresses.own("nowhere.invalid")
  # What Debian calls a host, for itself alone.
  entry = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))
  monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [entry, entry])
  assert not addresses.own("node7")
  assert addresses.own("127.0.1.1") == ["127.0.1.1"]


def test_an_address_that_is_not_of_this_host_is_listened_at_by_all():
  place = rendezvous.Place(f"192.0.2.1:{processes.free_port()}", 2, 0, 1.0)
  with contextlib.closing(*rendezvous._listen(place)) as listener:
    assert listener.getsockname()[0] in ("::", "0.0.0.0")
