"""Connections that cannot be held open for nothing.

uvicorn waits for headers, and for a client that does not read its answer, as
long as it takes, and resets a connection whose request it has not read to the
end, so that the client may lose the answer that says why.
"""

import asyncio
from typing import Any

from xlj.serving.packages import uvicorn

HEADER_SECONDS = 10.0
MAX_HEADER_BYTES = 64 * 1024
WRITE_SECONDS = 30.0
# What a client may go on sending after an answer that did not wait for it.
LINGER_SECONDS = 2.0
MAX_CONNECTIONS = 8192
_REASONS = {
  400: "Bad Request",
  408: "Request Timeout",
  431: "Request Header Fields Too Large",
  503: "Service Unavailable",
}

_Protocol = uvicorn.protocols.http.httptools_impl.HttpToolsProtocol


class Connection(_Protocol):
  """One of HTTP/1.1.

  What the application has put as `left` into the scope's state is called when
  a client leaves before its answer.
  """

  _in_headers = True  # or before them
  _header_bytes = 0
  _lingers = False
  _header_timer: asyncio.TimerHandle | None = None
  _timer: asyncio.TimerHandle | None = None

  def connection_made(self, transport: Any) -> None:
    """A client has connected."""
    super().connection_made(transport)
    if len(self.connections) > MAX_CONNECTIONS:
      self._refuse(503, "too many connections; try again later")
      return
    self._wait_for_headers()

  def connection_lost(self, exc: Exception | None) -> None:
    """It has left."""
    for timer in (self._header_timer, self._timer):
      if timer is not None:
        timer.cancel()
    cycle = self.cycle
    super().connection_lost(exc)
    if cycle is not None and not cycle.response_complete:
      left = cycle.scope["state"].get("left")
      if left is not None:
        left()

  def data_received(self, data: bytes) -> None:
    """It has sent something."""
    if self._lingers or self.transport.is_closing():
      return
    super().data_received(data)
    if self._in_headers and not self.transport.is_closing():
      self._header_bytes += len(data)
      if self._header_bytes > MAX_HEADER_BYTES:
        self._refuse(431, f"headers have more than {MAX_HEADER_BYTES} bytes")
      elif self._header_timer is None:
        self._wait_for_headers()

  def send_400_response(self, msg: str) -> None:
    """What it has sent is no HTTP."""
    self._refuse(400, "this is no valid request of HTTP/1.1")

  def on_message_begin(self) -> None:
    """The first line of a request begins."""
    super().on_message_begin()
    self._in_headers = True

  def on_header(self, name: bytes, value: bytes) -> None:
    """A header, or a trailer, of which there is none that matters."""
    if self._in_headers:
      super().on_header(name, value)

  def on_headers_complete(self) -> None:
    """The headers are here, perhaps a body follows."""
    self._in_headers, self._header_bytes = False, 0
    if self._header_timer is not None:
      self._header_timer.cancel()
      self._header_timer = None
    super().on_headers_complete()

  def on_response_complete(self) -> None:
    """It has its answer."""
    if self.cycle.more_body and not self.transport.is_closing():
      self._linger()
      return
    super().on_response_complete()

  def pause_writing(self) -> None:
    """It does not read its answer."""
    super().pause_writing()
    if self._timer is None:
      self._timer = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

  def resume_writing(self) -> None:
    """It reads again."""
    super().resume_writing()
    if self._timer is not None and not self._lingers:
      self._timer.cancel()
      self._timer = None

  def timeout_keep_alive_handler(self) -> None:
    """It asks nothing more."""
    if self.transport.get_write_buffer_size():
      self.transport.abort()  # and does not read what it asked for
    else:
      super().timeout_keep_alive_handler()

  def _wait_for_headers(self) -> None:
    self._header_timer = self.loop.call_later(
      HEADER_SECONDS,
      lambda: self._refuse(408, f"no request within {HEADER_SECONDS:g} s"),
    )

  def _linger(self) -> None:
    """Says no more, and takes what comes, so that the answer arrives."""
    self._lingers = True
    self.transport.write_eof()
    self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

  def _refuse(self, status: int, text: str) -> None:
    if self.transport.is_closing() or self._lingers:
      return
    if self.cycle is not None and not self.cycle.response_complete:
      self.transport.abort()  # what came before has no answer yet
      return
    body = f'{{"error":"{text}"}}'
    self.transport.write(
      f"HTTP/1.1 {status} {_REASONS[status]}\r\n"
      f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
      f"connection: close\r\n\r\n{body}".encode()
    )
    self._linger()
