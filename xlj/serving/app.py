"""The application: what each path answers.

Every answer but a page and metrics is JSON; what is refused has
`{"error": text}`. `serving.requests` says what rows are.
"""

from collections.abc import Callable
import dataclasses
import hmac
from pathlib import Path
import re
import secrets
import time
import traceback
from typing import Any
import urllib.parse

import numpy as np

import xlj
from xlj.serving import answers
from xlj.serving import models as models_lib
from xlj.serving import page as page_lib
from xlj.serving import protocols
from xlj.serving import requests
from xlj.serving import service as service_lib
from xlj.serving.packages import msgspec
from xlj.serving.packages import starlette

Request = starlette.requests.Request
Response = starlette.responses.Response
Refused = requests.Refused
_JSON = "application/json"
_FORM = "application/x-www-form-urlencoded"
_MAX_NEAREST = 100
_MAX_FIELDS = 16  # of a form
# Whoever asks whether the server lives has no token.
_OPEN = {"/", "/health", "/ready", "/v2/health/live", "/v2/health/ready"}
_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)


class Application:
  """An ASGI application over some models."""

  def __init__(self, service: service_lib.Service, token: str | None = None):
    """Makes its routes.

    Args:
      service: What it asks.
      token: What clients have to bear; None for nothing.
    """
    self._token = None if token is None else token.encode()
    self._service = service
    self.stopping = False
    self._under_way = 0
    self._page, self._page_headers = page_lib.load()
    self._routes = starlette.applications.Starlette(
      routes=[
        starlette.routing.Route(path, endpoint, methods=[method])
        for path, method, endpoint in self._endpoints()
      ],
      exception_handlers={
        Exception: _handled,
        Refused: _handled,
        starlette.requests.ClientDisconnect: _handled,
        starlette.exceptions.HTTPException: _handled,
      },
    )
    self._routes.router.redirect_slashes = False
    # Most requests; found without trying one route after the other.
    self._plain = {
      (method, path): endpoint
      for path, method, endpoint in self._endpoints()
      if "{" not in path
    }

  def _endpoints(self) -> list[tuple[str, str, Callable]]:
    return [
      ("/predict", "POST", self._predict),
      ("/", "GET", self._get_page),
      ("/health", "GET", self._health),
      ("/ready", "GET", self._ready),
      ("/info", "GET", self._info),
      ("/metrics", "GET", self._metrics),
      ("/embed", "POST", self._embed),
      ("/why", "POST", self._why),
      ("/labels/{label}", "GET", self._label),
      ("/models/{name}/reload", "POST", self._reload),
      ("/v2", "GET", self._v2),
      ("/v2/health/live", "GET", self._health),
      ("/v2/health/ready", "GET", self._ready),
      ("/v2/models/{name}", "GET", self._v2_model),
      ("/v2/models/{name}/ready", "GET", self._v2_ready),
      ("/v2/models/{name}/infer", "POST", self._v2_infer),
      ("/annif", "GET", self._annif_info),
      ("/annif/", "GET", self._annif_info),
      ("/annif/suggest", "POST", self._annif_suggest),
    ]

  # --- every request ----------------------------------------------------------

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    """Answers, measures and logs a request."""
    if scope["type"] != "http":
      return
    start = time.monotonic()
    request = Request(scope, receive, send)
    asked = request.headers.get("x-request-id", "")
    name = asked if _ID.fullmatch(asked) else secrets.token_hex(8)
    state = scope.setdefault("state", {})

    async def answered(message: Any) -> None:
      if message["type"] == "http.response.start":
        state["status"] = message["status"]
        message["headers"] += [
          (b"x-request-id", name.encode()),
          (b"x-content-type-options", b"nosniff"),
        ]
      await send(message)

    endpoint = self._plain.get((scope["method"], scope["path"]))
    self._under_way += 1
    try:
      if refusal := self._refused_at_once(request):
        await _refusal(refusal)(scope, receive, answered)
      elif endpoint is None:
        await self._routes(scope, receive, answered)
      else:
        try:
          response = await endpoint(request)
        except Exception as error:
          response = await _handled(request, error)
          if response.status_code == 500:
            self._log_bug(name, error)
        await response(scope, receive, answered)
    except Exception as error:  # a bug, of which the client has been told
      self._log_bug(name, error)
    finally:
      self._under_way -= 1
    seconds = time.monotonic() - start
    status = state.get("status", 500)
    # The path as it is in the table, without what a client has put into it.
    path, route = scope["path"], scope.get("route")
    if endpoint is None:
      path = "other" if route is None else route.path
    rows = state.get("rows", 0)
    self._service.metrics.request(path, status, rows, seconds)
    self._service.log(
      event="request",
      id=name,
      method=None if path == "other" else scope["method"],
      path=path,
      model=state.get("model"),
      status=status,
      rows=rows,
      ms=round(1000 * seconds, 2),
    )

  def _refused_at_once(self, request: Request) -> Refused | None:
    """What is wrong with a request, whatever it asks."""
    if self._token is not None and request.scope["path"] not in _OPEN:
      kind, _, token = request.headers.get("authorization", "").partition(" ")
      given = token.strip().encode("latin-1", "replace")
      if kind.lower() != "bearer" or not hmac.compare_digest(
        given, self._token
      ):
        return Refused(
          401,
          "give the token of the server: Authorization: Bearer TOKEN",
          www_authenticate="Bearer",
        )
    if request.method != "POST":
      return None
    if self.stopping:
      return Refused(
        503, "the server is stopping", retry_after="1", connection="close"
      )
    # Each has a row at least. More would only wait for their turn to be read.
    most = self._service.limits.max_waiting_rows
    if max(self._under_way - 1, self._service.batcher.rows) >= most:
      return self._service.full()
    return None

  def _log_bug(self, name: str, error: Exception) -> None:
    """Where it happened, but not its text, which may be a user's."""
    frames = traceback.extract_tb(error.__traceback__)
    self._service.log(
      event="error",
      id=name,
      error=type(error).__name__,
      where=[f"{f.filename}:{f.lineno}" for f in frames[-5:]],
    )

  # --- labels of rows ---------------------------------------------------------

  async def _predict(self, request: Request) -> Response:
    asked = await self._service.read(request, requests.Predict)
    model = self._service.model(request, asked.model)
    answer = await self._service.ask(request, model, asked.rows, asked)
    return _json({"predictions": predictions(answer, model)})

  async def _embed(self, request: Request) -> Response:
    asked = await self._service.read(request, requests.Embed)
    model = self._service.model(request, asked.model)
    rows = self._service.rows(request, asked.rows, model)
    task = answers.Task(lambda: model.answers.embed(rows.features))
    found = await self._service.computed(request, task, len(rows), rows.length)
    return _json({"embeddings": found.tolist()})

  async def _why(self, request: Request) -> Response:
    asked = await self._service.read(request, requests.Why)
    model = self._service.model(request, asked.model)
    rows = self._service.rows(request, [asked.row], model)
    labels = requests.check_labels(asked.labels, model, "labels")
    if len(labels) > _MAX_NEAREST or not 1 <= asked.n <= _MAX_NEAREST:
      raise Refused(422, f"give up to {_MAX_NEAREST} labels, and n up to that")
    task = answers.Task(lambda: _reasons(model, rows, labels, asked.n))
    return _json(await self._service.computed(request, task, 1, rows.length))

  # --- what is known ----------------------------------------------------------

  async def _label(self, request: Request) -> Response:
    model = self._service.model(request, request.query_params.get("model"))
    said = request.path_params["label"]
    label = int(said) if re.fullmatch("[0-9]{1,19}", said) else -1
    number = model.number(label)
    if number < 0:
      raise Refused(404, "the model has no label of that id")
    many = request.query_params.get("n", "10")
    if not re.fullmatch("[0-9]{1,3}", many) or int(many) > _MAX_NEAREST:
      raise Refused(422, f"n has to be a number from 0 to {_MAX_NEAREST}")
    nearest = []
    if int(many):
      task = answers.Task(lambda: model.answers.neighbours_of(label, int(many)))
      ids, cosines = map(
        np.asarray, await self._service.computed(request, task)
      )
      names = model.names(ids) or [None] * len(ids)
      nearest = [
        {"label": i, "name": name, "cosine": cosine}
        for i, name, cosine in zip(ids.tolist(), names, cosines.tolist())
      ]
    name = model.names(np.array([label]))
    return _json(
      {
        "label": label,
        "name": None if name is None else name[0],
        "count": None if model.counts is None else int(model.counts[number]),
        "nearest": nearest,
      }
    )

  async def _info(self, request: Request) -> Response:
    return _json(
      {
        "version": xlj.__version__,
        "limits": dataclasses.asdict(self._service.limits),
        "models": [_described(model) for model in self._service.models],
      }
    )

  async def _health(self, request: Request) -> Response:
    return _json({"live": True})

  async def _ready(self, request: Request) -> Response:
    return _json({"ready": not self.stopping}, 503 if self.stopping else 200)

  async def _metrics(self, request: Request) -> Response:
    return Response(
      self._service.metrics.text(), media_type="text/plain; version=0.0.4"
    )

  async def _get_page(self, request: Request) -> Response:
    return Response(
      self._page, media_type="text/html", headers=self._page_headers
    )

  # --- another model ----------------------------------------------------------

  async def _reload(self, request: Request) -> Response:
    if self._token is None:
      raise Refused(
        403, "models are replaced by who has a token; start with --token"
      )
    asked = await self._service.read(request, requests.Reload)
    model = self._service.model(request, request.path_params["name"])
    directory = None if asked.dir is None else Path(asked.dir)
    error = await self._service.reload(model.name, directory)
    if isinstance(error, BlockingIOError):
      raise Refused(409, str(error))
    if error is not None:
      text = " ".join(str(error).split())
      raise Refused(422, f"{text}; the model that was there is kept")
    return _json(_described(self._service.model(request, model.name)))

  # --- other protocols --------------------------------------------------------

  async def _v2(self, request: Request) -> Response:
    return _json({"name": "xlj", "version": xlj.__version__, "extensions": []})

  async def _v2_model(self, request: Request) -> Response:
    model = self._service.model(request, request.path_params["name"])
    return _json(protocols.metadata(model))

  async def _v2_ready(self, request: Request) -> Response:
    self._service.model(request, request.path_params["name"])
    return await self._ready(request)

  async def _v2_infer(self, request: Request) -> Response:
    asked = await self._service.read(request, protocols.Infer)
    model = self._service.model(request, request.path_params["name"])
    rows = protocols.rows(asked)
    answer = await self._service.ask(request, model, rows, asked.parameters)
    return _json(protocols.tensors(asked, answer, model))

  async def _annif_info(self, request: Request) -> Response:
    model = self._service.model(request, request.query_params.get("project"))
    return _json(protocols.annif_project(model))

  async def _annif_suggest(self, request: Request) -> Response:
    body = await self._service.body(request, _FORM)
    try:
      fields = dict(
        urllib.parse.parse_qsl(
          body.decode(), keep_blank_values=True, max_num_fields=_MAX_FIELDS
        )
      )
    except ValueError as error:
      raise Refused(400, f"the body is no form: {error}") from None
    model = self._service.model(request, fields.get("project"))
    text, asked = protocols.annif_question(fields, model)
    answer = await self._service.ask(request, model, [text], asked)
    return _json({"results": protocols.suggestions(answer, model)})


def predictions(
  answer: answers.Answer, model: models_lib.Model
) -> list[dict[str, Any]]:
  """The labels of each row, without what is past their end."""
  names = model.names(answer.ids)
  scores = np.round(answer.scores.astype(np.float64), 6).tolist()
  found = []
  for i, ids in enumerate(answer.ids.tolist()):
    if -1 in ids:
      kept = [j for j, label in enumerate(ids) if label != -1]
    else:
      kept = range(len(ids))
    row: dict[str, Any] = {"labels": [ids[j] for j in kept]}
    if names is not None:
      row["names"] = [names[i][j] for j in kept]
    row["scores"] = [scores[i][j] for j in kept]
    if answer.probabilities is not None:
      each = answer.probabilities[i].astype(np.float64).round(6).tolist()
      row["probabilities"] = [each[j] for j in kept]
    found.append(row)
  return found


def _reasons(
  model: models_lib.Model, rows: requests.Rows, labels: np.ndarray, n: int
) -> dict[str, Any]:
  """What speaks for labels of a row, and the training rows near to it."""
  row = rows.alone(model)
  why = model.answers.why(row, labels.tolist(), n)
  near = model.answers.near_rows(row, n)
  return {
    "why": [
      [
        {
          "feature": int(feature),
          "name": model.feature_name(int(feature)),
          "contribution": float(value),
        }
        for feature, value in of_label
      ]
      for of_label in why
    ],
    "rows": [
      {
        "row": each.row,
        "cosine": each.cosine,
        "labels": each.labels,
        "names": model.names(np.array(each.labels, np.int64)),
      }
      for each in near
    ],
  }


def _described(model: models_lib.Model) -> dict[str, Any]:
  return {
    "name": model.name,
    "input": model.input,
    "image": model.image,
    "labels": model.num_labels,
    "features": model.num_features,
    "names": model.answers.label_names is not None,
    "calibrated": model.calibration is not None,
    "loaded": model.loaded,
  }


def _json(value: Any, status: int = 200, headers: Any = None) -> Response:
  return Response(
    msgspec.json.encode(value), status, media_type=_JSON, headers=headers
  )


def _refusal(error: Refused) -> Response:
  return _json({"error": str(error)}, error.status, error.headers)


async def _handled(request: Request, error: Exception) -> Response:
  """What is refused, what Starlette refuses, and bugs."""
  if isinstance(error, Refused):
    return _refusal(error)
  if isinstance(error, starlette.requests.ClientDisconnect):
    return _refusal(Refused(499, "the client has left"))
  if isinstance(error, starlette.exceptions.HTTPException):
    text = {
      404: "there is nothing at that path",
      405: f"use {(error.headers or {}).get('Allow', 'another method')}",
    }.get(error.status_code, error.detail)
    return _json({"error": text}, error.status_code, error.headers)
  return _json({"error": "the server has a defect; its log says where"}, 500)
