"""What every path of the server needs: limits, bodies, models, a turn."""

import asyncio
from collections.abc import Callable
import dataclasses
import functools
from pathlib import Path
import time
from typing import Any

from xlj.serving import answers
from xlj.serving import batching
from xlj.serving import metrics as metrics_lib
from xlj.serving import models as models_lib
from xlj.serving import protocols
from xlj.serving import requests
from xlj.serving.packages import starlette

Request = starlette.requests.Request
Refused = requests.Refused
_MAX_ANSWERS = 1_000_000  # labels in one answer
_JSON = "application/json"


@dataclasses.dataclass(frozen=True)
class Limits:
  """What is too much; counted in rows before any work.

  Attributes:
    max_rows: Of a request.
    max_waiting_rows: Of requests that wait.
    max_bytes: Of the body of a request.
    batch_rows: That are computed at a time.
    timeout: Seconds for a body to arrive, and for an answer.
  """

  max_rows: int = 1024
  max_waiting_rows: int = 4096
  max_bytes: int = 2_000_000
  batch_rows: int = 64
  timeout: float = 30.0

  def __post_init__(self) -> None:
    """Refuses limits that no request could meet."""
    if self.max_waiting_rows < self.max_rows:
      raise ValueError(
        f"--max_waiting_rows is {self.max_waiting_rows}, less than --max_rows,"
        f" {self.max_rows}: such a request could never wait"
      )


class Service:
  """Models, those who wait for them, and what is too much."""

  def __init__(
    self,
    models: models_lib.Models,
    *,
    limits: Limits,
    log: Callable[..., None],
  ):
    """Starts the thread that computes.

    Args:
      models: That answer.
      limits: What is refused.
      log: Gets the fields of a line.
    """
    self.models, self.limits, self.log = models, limits, log
    self.metrics = metrics_lib.Metrics(lambda: self.batcher.rows)
    self.batcher = batching.Batcher(
      answers.compute,
      batch_rows=limits.batch_rows,
      max_waiting_rows=limits.max_waiting_rows,
      observe=self.metrics.batch,
    )
    forms = requests.Predict, requests.Embed, requests.Why, requests.Reload
    self._decoders = {
      form: requests.Decoder(form) for form in (*forms, protocols.Infer)
    }

  async def body(self, request: Request, kind: str) -> bytes:
    """The whole body of a request.

    Args:
      request: Whose.
      kind: What it has to be, as a media type.

    Returns:
      Its bytes.

    Raises:
      Refused: It is another kind, too large, or too slow.
    """
    found = request.headers.get("content-type", "").partition(";")[0]
    if found.strip().lower() != kind:
      raise Refused(415, f"the body has to be {kind}; say so in Content-Type")
    if request.headers.get("content-encoding", "identity") != "identity":
      raise Refused(415, "the body is compressed; send it as it is")
    most = self.limits.max_bytes
    too_large = Refused(
      413, f"the body has more than {most} bytes, --max_bytes"
    )
    if int(request.headers.get("content-length", 0)) > most:
      raise too_large
    body = bytearray()
    try:
      async with asyncio.timeout(self.limits.timeout):
        async for chunk in request.stream():
          body += chunk
          if len(body) > most:
            raise too_large
    except TimeoutError:
      raise Refused(
        408, f"the body took more than {self.limits.timeout:g} s, --timeout"
      ) from None
    return bytes(body)

  async def read(self, request: Request, form: type) -> Any:
    """The body of a request as a message of a form."""
    return self._decoders[form](await self.body(request, _JSON))

  def model(self, request: Request, name: str | None) -> models_lib.Model:
    """The model that a request asks; refused (404) if there is none."""
    model = self.models.get(name)
    if model is None:
      known = ", ".join(model.name for model in self.models)
      raise Refused(404, f"there is no model of that name; there are: {known}")
    request.scope["state"]["model"] = model.name
    return model

  def rows(
    self, request: Request, rows: Any, model: models_lib.Model
  ) -> requests.Rows:
    """Rows that fit the model; the limit is one of rows, not of requests."""
    request.scope["state"]["rows"] = len(rows)
    if len(rows) > self.limits.max_rows:
      raise Refused(
        413,
        f"the request has {len(rows)} rows; at most {self.limits.max_rows},"
        " --max_rows",
      )
    return requests.read_rows(rows, model)

  def full(self) -> Refused:
    """What those are told who would have to wait for too long."""
    return Refused(
      429,
      "too many rows wait; try again later",
      retry_after=str(self.batcher.seconds()),
    )

  async def computed(
    self, request: Request, work: Any, rows: int = 1, length: int = 0
  ) -> Any:
    """What the thread makes of it, in its turn."""
    try:
      job = self.batcher.submit(work.key(), rows, length, work)
    except batching.Full:
      raise self.full() from None
    left = functools.partial(self.batcher.drop, job)
    request.scope["state"]["left"] = left
    try:
      async with asyncio.timeout(self.limits.timeout):
        return await job.future
    except TimeoutError:
      raise Refused(
        504, f"no answer within {self.limits.timeout:g} s, --timeout"
      ) from None
    except ValueError as error:
      raise Refused(422, str(error)) from None
    except asyncio.CancelledError:
      if not job.future.cancelled():
        raise
      raise Refused(499, "the client has left") from None
    finally:
      left()

  async def ask(
    self,
    request: Request,
    model: models_lib.Model,
    rows: Any,
    asked: Any,
  ) -> answers.Answer:
    """The labels of rows; of every protocol.

    Args:
      request: For what is logged.
      model: That is asked.
      rows: As `requests.Row`.
      asked: With k, allow, deny, threshold and min_probability.

    Returns:
      The answer.

    Raises:
      Refused: Instead of it.
    """
    found = self.rows(request, rows, model)
    k = requests.check_k(asked.k, model)
    if k * len(found) > _MAX_ANSWERS:
      raise Refused(
        413,
        f"{len(found)} rows with k={k} are {k * len(found)} labels; at most"
        f" {_MAX_ANSWERS} in one answer",
      )
    least = asked.min_probability
    if least is not None and model.calibration is None:
      raise Refused(
        422,
        "the model is not calibrated, as xlj calibrate does; give a"
        " threshold of scores in place of min_probability",
      )
    if least is not None and not 0 <= least <= 1:
      raise Refused(422, "min_probability has to be a number from 0 to 1")
    allow = asked.allow
    if allow is not None:
      allow = requests.check_labels(allow, model, "allow")
    deny = requests.check_labels(asked.deny, model, "deny")
    question = answers.Question(
      model, found, k, allow, deny, asked.threshold, least
    )
    return await self.computed(request, question, len(found), found.length)

  async def reload(
    self, name: str, directory: Path | None = None
  ) -> Exception | None:
    """Replaces a model while others are asked; returns what went wrong."""
    start, error = time.monotonic(), None
    try:
      await asyncio.to_thread(self.models.reload, name, directory)
    except Exception as found:  # whatever is in that directory
      error = found
    self.metrics.reload(name, "kept" if error else "replaced")
    self.log(
      event="reload",
      model=name,
      error=None if error is None else str(error),
      seconds=round(time.monotonic() - start, 2),
    )
    return error

  async def reload_all(self) -> None:
    """Reads again what the directories of all models hold."""
    for model in self.models:
      await self.reload(model.name)
