"""Jobs of several real processes on this machine, for tests."""

import socket

from tests import runs


def free_port():
  """A port that nobody listens at."""
  with socket.create_server(("127.0.0.1", 0)) as listener:
    return listener.getsockname()[1]


def launch(name, count, *args, devices=1, peer_timeout=20.0):
  """Starts a launcher as the processes of one job; returns them in order."""
  address = f"127.0.0.1:{free_port()}"
  return [
    runs.launch(
      name,
      *args,
      f"--coordinator_address={address}",
      f"--num_processes={count}",
      f"--process_id={process}",
      f"--peer_timeout={peer_timeout}",
      devices=devices,
    )
    for process in range(count)
  ]


def finish(job, timeout=300):
  """Waits for all; returns (exit statuses, outputs, what was on stderr)."""
  try:
    return tuple(zip(*(runs.finish(process, timeout) for process in job)))
  finally:
    for process in job:  # those that hang
      process.kill()


def succeed(job):
  """Waits for all to end well; returns their outputs."""
  statuses, outputs, errors = finish(job)
  assert not any(statuses), "\n".join(errors)
  return outputs
