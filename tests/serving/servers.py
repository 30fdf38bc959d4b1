"""A real server on loopback, in this process, over a tiny real model."""

import contextlib
import http.client
import json
import socket
import threading
import time

from xlj.serving import models as models_lib
from xlj.serving import server as server_lib
from xlj.serving import service as service_lib

LIMITS = service_lib.Limits(
  max_rows=8, max_waiting_rows=16, max_bytes=20_000, batch_rows=4, timeout=60
)
TOKEN = "a-secret"


class Running:
  """A server, and what it has logged."""

  def __init__(self, directories, token, limits):
    self.lines = []
    self.models = models_lib.Models(directories, lambda answers: None)
    self.service = service_lib.Service(
      self.models, limits=limits, log=lambda **line: self.lines.append(line)
    )
    self.server = server_lib.Server(self.service, token)
    listener = socket.create_server(("127.0.0.1", 0))
    self.port = listener.getsockname()[1]
    self.thread = threading.Thread(
      target=self.server.run, kwargs={"sockets": [listener]}
    )
    self.thread.start()
    while not self.server.started:
      time.sleep(0.01)

  def connect(self):
    return socket.create_connection(("127.0.0.1", self.port), 30)

  def call(self, method, path, body=None, **headers):
    """Status, headers and body of an answer, that of JSON as an object."""
    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
    with contextlib.closing(connection):
      if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
      headers = {k.replace("_", "-"): v for k, v in headers.items()}
      headers.setdefault("Content-Type", "application/json")
      connection.request(method, path, body, headers)
      return read(connection.getresponse())

  def predict(self, **asked):
    return self.call("POST", "/predict", asked)


def read(answer):
  text = answer.read()
  if answer.headers.get("content-type") == "application/json":
    text = json.loads(text)
  return answer.status, answer.headers, text


@contextlib.contextmanager
def running(directories, token=None, limits=LIMITS):
  made = Running(directories, token, limits)
  try:
    yield made
  finally:
    made.server.stop()
    made.thread.join(30)
    made.service.batcher.stop()
