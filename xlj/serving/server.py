"""The process: its socket, its signals, and its end."""

import asyncio
import contextlib
import functools
import logging
from pathlib import Path
import resource
import signal
import socket
from typing import Any

from xlj.serving import app as app_lib
from xlj.serving import connections
from xlj.serving import lines as lines_lib
from xlj.serving import models as models_lib
from xlj.serving import service as service_lib
from xlj.serving.packages import uvicorn

# Idle connections; another request may come a moment before they are closed.
_KEEP_ALIVE_SECONDS = 15
_OTHER_FILES = 256
# New requests are refused in words for so long before nobody listens.
DRAIN_SECONDS = 0.5


def serve(
  directories: dict[str, Path],
  *,
  host: str,
  port: int,
  limits: service_lib.Limits,
  token: str | None = None,
  probes: int | None = None,
) -> None:
  """Answers until SIGTERM or SIGINT, then what has been accepted.

  SIGHUP reads the directories of the models again.

  Args:
    directories: Of runs or exported models, by name.
    host: Address to listen at.
    port: Likewise; 0 for any free one, which the log tells.
    limits: What is refused.
    token: What clients have to bear.
    probes: Of indexes of exported models; see `export.model.load`.

  Raises:
    ValueError: A directory holds no model.
    OSError: It cannot be read, or something else listens there.
  """
  _open_more_files()
  listener = _bound(host, port)  # before what takes seconds
  with contextlib.closing(listener):
    warm_up = functools.partial(_warm_up, examples=limits.batch_rows)
    models = models_lib.Models(directories, warm_up, probes)
    log = lines_lib.Lines()
    service = service_lib.Service(models, limits=limits, log=log)
    server = Server(service, token)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    server.run(sockets=[listener])
    service.batcher.stop()
    log(event="stopped")
    log.close()


def _open_more_files() -> None:
  """Lets there be as many connections as the system will allow."""
  wanted = connections.MAX_CONNECTIONS + _OTHER_FILES
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft != resource.RLIM_INFINITY and soft < wanted:
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def _warm_up(answers: Any, examples: int) -> None:
  answers.warm_up(examples=examples)


def _bound(host: str, port: int) -> socket.socket:
  """A socket at an address, which does not listen yet."""
  try:
    family, kind, _, _, address = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
  except OSError as error:
    raise OSError(
      f"cannot listen at --host={host} --port={port}: {error.strerror}"
    ) from None
  return listener


class Server(uvicorn.Server):
  """uvicorn's, which tells clients that it stops before it does."""

  def __init__(self, service: service_lib.Service, token: str | None):
    """Configures it.

    Args:
      service: What is served.
      token: What clients have to bear.
    """
    self._service = service
    self._app = app_lib.Application(service, token)
    super().__init__(
      uvicorn.Config(
        self._app,
        http=connections.Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(service.limits.timeout)),
      )
    )

  @contextlib.contextmanager
  def capture_signals(self) -> Any:
    """Uvicorn would raise them again, and not exit with status 0."""
    yield

  async def startup(self, sockets: list[socket.socket] | None = None) -> None:
    """Listens, and handles signals."""
    loop = asyncio.get_running_loop()
    tasks = set()

    def reload() -> None:
      task = loop.create_task(self._service.reload_all())
      tasks.add(task)
      task.add_done_callback(tasks.discard)

    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
      # Not where signals are not handled, in other threads.
      for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, self.stop)
      loop.add_signal_handler(signal.SIGHUP, reload)
    await super().startup(sockets=sockets)
    host, port = self.servers[0].sockets[0].getsockname()[:2]
    names = [model.name for model in self._service.models]
    self._service.log(event="listening", host=host, port=port, models=names)

  def stop(self) -> None:
    """Begins to."""
    self.should_exit = True

  async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
    """Answers what has been accepted, and refuses the rest."""
    self._app.stopping = True
    self._service.log(event="stopping")
    await asyncio.sleep(DRAIN_SECONDS)
    await super().shutdown(sockets)
