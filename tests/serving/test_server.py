"""Answers of a server on loopback, in every form, and what is logged."""

import asyncio
import dataclasses
import json
import os
import shutil
import signal
import socket
import threading
import time
import urllib.parse

import numpy as np
import pytest

from tests import runs
from tests.serving import conftest
from tests.serving import servers
from xlj.inference import calibration as calibration_lib
from xlj.serving import batching
from xlj.serving import lines as lines_lib
from xlj.serving import models as models_lib
from xlj.serving import requests

ROW = {"3": 1.0, "7": 0.5}
VECTOR = [0, 0, 0, 1.0, 0, 0, 0, 0.5, 0, 0, 0, 0]


@pytest.fixture(scope="module")
def expected(server):
  model = server.models.get(None).answers
  scores, ids = model.topk([{3: 1.0, 7: 0.5}], 3)
  return ids[0].tolist(), scores[0], model.names(ids[0])


def check(prediction, expected):
  labels, scores, names = expected
  assert prediction["labels"] == labels
  assert prediction["names"] == names
  np.testing.assert_allclose(prediction["scores"], scores, atol=1e-5)


@pytest.mark.parametrize(
  "row", [ROW, {"07": 0.5, "3": 1}, [[7, 0.5], [3, 1]], VECTOR]
)
def test_a_row_in_any_form_has_the_models_answer(server, expected, row):
  status, _, found = server.predict(rows=[row], k=3)
  assert status == 200
  (prediction,) = found["predictions"]
  check(prediction, expected)


@pytest.mark.parametrize(
  "row", [{"3": 1.0, "7": 0.5}, {"7": 2.0, "0": -1.0}, {"11": 3.4e38}]
)
def test_rows_of_ids_are_read_quickly_and_alike(server, row):
  model = server.models.get(None)
  quick = requests._quickly(row, model)
  assert quick == requests._Sparse(0, model).read(row)
  for slow in (
    *({"": 1.0}, {"+3": 1.0}, {"3": 1.0, "03": 1.0}, {"12": 1.0}),
    *({"3": "1"}, {"3": 4e38}, {"³": 1.0}, {"1_0": 1.0}, {"9" * 99: 1.0}),
  ):
    assert requests._quickly(row | slow, model) is None


def test_many_rows_are_answered_in_order(server, expected):
  status, _, found = server.predict(rows=[{}, ROW, {}, VECTOR], k=3)
  assert status == 200
  empty, first, again, second = found["predictions"]
  check(first, expected)
  check(second, expected)
  assert empty == again != first


def test_labels_are_allowed_and_denied(server, expected):
  (best, second, _), (score, *_), _ = expected
  _, _, found = server.predict(rows=[ROW], deny=[best], k=1)
  assert found["predictions"][0]["labels"] == [second]
  _, _, found = server.predict(rows=[ROW], allow=[second], deny=[best])
  assert found["predictions"][0]["labels"] == [second]
  _, _, found = server.predict(rows=[ROW], threshold=float(score) + 1)
  assert found["predictions"] == [{"labels": [], "names": [], "scores": []}]


def test_labels_are_known_with_their_markup(server):
  for i, name in enumerate(conftest.NAMES):
    status, headers, found = server.call("GET", f"/labels/{i}")
    assert status == 200 and found["name"] == name
    assert headers["content-type"] == "application/json"
    assert found["count"] >= 1


def test_the_open_inference_protocol(server, expected):
  labels, scores, names = expected
  for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/first/ready"):
    assert server.call("GET", path)[0] == 200
  _, _, described = server.call("GET", "/v2/models/first")
  assert described["inputs"] == [
    {"name": "features", "datatype": "FP32", "shape": [-1, 12]}
  ]
  tensors = [
    {"datatype": "FP32", "shape": [1, 12], "data": VECTOR},
    {"datatype": "FP32", "shape": [1, 12], "data": [VECTOR]},
    {"datatype": "BYTES", "shape": [1], "data": [json.dumps(ROW)]},
  ]
  for tensor in tensors:
    asked = {
      "id": "7",
      "inputs": [{"name": "features", **tensor}],
      "parameters": {"k": 3},
    }
    status, _, found = server.call("POST", "/v2/models/first/infer", asked)
    assert status == 200 and found["id"] == "7"
    given = {output["name"]: output for output in found["outputs"]}
    assert given["labels"]["data"] == labels
    assert given["labels"]["shape"] == [1, 3]
    assert given["names"]["data"] == names
    np.testing.assert_allclose(given["scores"]["data"], scores, atol=1e-5)


@pytest.fixture
def of_texts(server, monkeypatch):
  """The model reads a text as the row that it holds in JSON."""
  model = server.models.get(None)
  inner = model.answers.answers

  def answers(texts, *rest):
    rows = [json.loads(text.split("\n")[-1]) for text in texts]
    return inner([{int(k): v for k, v in row.items()} for row in rows], *rest)

  monkeypatch.setattr(model, "input", "texts")
  monkeypatch.setattr(model.answers, "answers", answers)


def test_texts_are_read_with_titles_or_without(server, of_texts, expected):
  text = json.dumps(ROW)
  rows = [text, {"text": text}, {"text": text, "title": "a title"}]
  status, _, found = server.predict(rows=rows, k=3)
  assert status == 200
  for prediction in found["predictions"]:
    check(prediction, expected)
  status, _, said = server.predict(rows=[text, ROW])
  assert status == 422 and said["error"] == "row 1 is no text, but others are"
  asked = {"inputs": [tensor("text", "BYTES", [1], [text])]}
  status, _, found = server.call("POST", "/v2/models/first/infer", asked)
  assert status == 200
  assert found["outputs"][0]["data"][:3] == expected[0]


def tensor(name, datatype, shape, data):
  return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def test_annif_gets_labels_with_scores_from_0_to_1(server, of_texts, expected):
  labels, scores, names = expected
  form = {"text": json.dumps(ROW), "limit": 3, "project": "first"}
  status, _, found = server.call(
    *("POST", "/annif/suggest", urllib.parse.urlencode(form).encode()),
    Content_Type="application/x-www-form-urlencoded",
  )
  assert status == 200
  assert [each["uri"] for each in found["results"]] == names
  shares = [each["score"] for each in found["results"]]
  np.testing.assert_allclose(shares, 1 / (1 + np.exp(-scores)), rtol=1e-4)


def test_a_calibrated_model_says_probabilities(server, expected, monkeypatch):
  labels, scores, names = expected
  calibration = calibration_lib.Calibration(
    slopes=np.array([1.0]),
    biases=np.array([4.0]),
    place=0.0,
    buckets=np.zeros(0),
    thresholds=np.zeros(0),
    precisions=np.zeros(0),
  )
  monkeypatch.setattr(server.models.get(None), "calibration", calibration)
  p = 1 / (1 + np.exp(-scores - 4))
  _, _, found = server.predict(rows=[ROW], k=3)
  (prediction,) = found["predictions"]
  np.testing.assert_allclose(prediction["probabilities"], p, atol=1e-5)
  _, _, found = server.predict(
    rows=[ROW], k=3, min_probability=float(p[1]) - 0.001
  )
  (prediction,) = found["predictions"]
  assert prediction["labels"] == labels[:2]
  assert len(prediction["probabilities"]) == 2
  status, _, said = server.predict(rows=[ROW], min_probability=1.5)
  assert status == 422 and "from 0 to 1" in said["error"]


@pytest.mark.parametrize("name", ["first", "exported"])
def test_a_model_says_why(server, expected, name):
  labels = expected[0]
  asked = {"row": ROW, "labels": labels[:2], "n": 5, "model": name}
  status, _, found = server.call("POST", "/why", asked)
  assert status == 200 and found["rows"] == []
  model = server.models.get(name).answers
  known = model.why({3: 1, 7: 0.5}, labels[:2], 5)
  assert known[0]
  for said, of_label in zip(found["why"], known, strict=True):
    assert [(x["feature"], x["contribution"]) for x in said] == of_label
  path = f"/labels/{labels[0]}?n=2&model={name}"
  status, _, found = server.call("GET", path)
  ids, cosines = model.neighbours_of(labels[0], 2)
  assert [near["label"] for near in found["nearest"]] == ids.tolist()


def test_an_exported_model_answers_as_its_run(server, expected):
  rows = [ROW, {}, VECTOR, [[3, 1], [7, 0.5]]]
  status, _, found = server.predict(rows=rows, k=3, model="exported")
  assert status == 200
  for i in (0, 2, 3):
    check(found["predictions"][i], expected)
  deny = [expected[0][0]]
  _, _, found = server.predict(rows=[ROW], deny=deny, model="exported")
  assert found["predictions"][0]["labels"][0] == expected[0][1]


def test_a_damaged_export_is_refused(server, exported, tmp_path):
  directory = tmp_path / "damaged"
  shutil.copytree(exported, directory)
  path = directory / "weights.safetensors"
  data = bytearray(path.read_bytes())
  data[-1] ^= 1
  path.write_bytes(data)
  with pytest.raises(ValueError, match="found the sha256"):
    models_lib.Models({"model": directory}, lambda answers: None)


def test_annif_asks_as_of_a_project(server):
  status, _, found = server.call("GET", "/annif?project=first")
  assert status == 200 and found["is_trained"]
  time.strptime(found["modification_time"], "%Y-%m-%dT%H:%M:%S+00:00")
  # This model reads no texts.
  form = urllib.parse.urlencode({"text": "a text", "limit": 3}).encode()
  kind = "application/x-www-form-urlencoded"
  status, _, found = server.call(
    "POST", "/annif/suggest", form, Content_Type=kind
  )
  assert status == 422 and "is a text" in found["error"]


def test_logs_say_what_happened_without_texts(server):
  before = len(server.lines)
  secret = "my-secret-text"
  server.call("POST", "/predict", {"rows": [secret]}, X_Request_ID="abc-1")
  server.call("GET", f"/{secret}", X_Request_ID="a b\tc")
  server.predict(rows=[{secret: 1}])
  server.predict(rows=[ROW, ROW], k=3)
  until(lambda: len(server.lines) == before + 4)
  lines = server.lines[before:]
  assert secret not in json.dumps(lines)
  assert [line["status"] for line in lines] == [422, 404, 422, 200]
  assert lines[0]["id"] == "abc-1" and lines[1]["id"] != "a b\tc"
  assert lines[3]["rows"] == 2 and lines[3]["ms"] > 0
  _, _, text = server.call("GET", "/metrics")
  assert b'xlj_requests_total{path="/predict",status="200"}' in text
  assert b"xlj_waiting_rows 0.0" in text


def test_a_defect_is_told_and_does_not_end_the_server(server, monkeypatch):
  def broken(*_):
    raise KeyError("a user's text")

  monkeypatch.setattr(server.models.get(None).answers, "answers", broken)
  status, _, found = server.predict(rows=[ROW])
  assert status == 500 and "user" not in found["error"]
  until(lambda: any(x["event"] == "error" for x in server.lines))
  (line,) = [x for x in server.lines if x["event"] == "error"]
  assert line["error"] == "KeyError" and "user" not in json.dumps(line)
  monkeypatch.undo()
  assert server.predict(rows=[ROW])[0] == 200


class Gate:
  """Lets a model wait before it answers."""

  def __init__(self, server, monkeypatch):
    self.entered, self.open = threading.Event(), threading.Event()
    self.sizes = []
    model = server.models.get(None).answers
    inner = model.answers

    def answers(features, *rest):
      self.entered.set()
      self.open.wait(30)
      self.sizes.append(features.num_rows)
      return inner(features, *rest)

    monkeypatch.setattr(model, "answers", answers)


@pytest.fixture
def gate(server, monkeypatch):
  made = Gate(server, monkeypatch)
  yield made
  made.open.set()


def in_threads(*calls):
  """Starts calls; returns what waits for their results."""
  found = [None] * len(calls)

  def run(i, call):
    found[i] = call()

  threads = [
    threading.Thread(target=run, args=pair) for pair in enumerate(calls)
  ]
  for thread in threads:
    thread.start()

  def wait():
    for thread in threads:
      thread.join(60)
    return found

  return wait


def until(condition):
  deadline = time.monotonic() + 30
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.005)


def test_a_full_queue_refuses_rows_and_not_requests(server, gate, expected):
  first = in_threads(lambda: server.predict(rows=[ROW], k=3))
  gate.entered.wait(30)  # is computed, and does not wait
  waiting = [lambda: server.predict(rows=[ROW] * 8, k=3)] * 2
  wait = in_threads(*waiting)
  until(lambda: server.service.batcher.rows == 16)
  for rows in ([ROW], [ROW, ROW]):
    status, headers, said = server.predict(rows=rows)
    assert status == 429 and int(headers["retry-after"]) >= 1
    assert "too many rows wait" in said["error"]
  gate.open.set()
  for status, _, found in first() + wait():
    assert status == 200
    for prediction in found["predictions"]:
      check(prediction, expected)


def test_more_than_could_wait_are_refused_unread(server, gate, monkeypatch):
  limits = dataclasses.replace(
    server.service.limits, max_rows=2, max_waiting_rows=2
  )
  monkeypatch.setattr(server.service, "limits", limits)
  wait = in_threads(*[lambda: server.predict(rows=[ROW])] * 2)
  until(lambda: server.server._app._under_way == 2)
  assert server.call("POST", "/predict", b"no JSON")[0] == 429
  assert server.call("GET", "/health")[0] == 200
  gate.open.set()
  assert [status for status, *_ in wait()] == [200, 200]


def test_those_who_wait_are_computed_together(server, gate, expected):
  first = in_threads(lambda: server.predict(rows=[ROW]))
  gate.entered.wait(30)
  calls = [lambda: server.predict(rows=[ROW, {}], k=3)] * 2
  denied = [lambda: server.predict(rows=[ROW], deny=[expected[0][0]])] * 2
  wait = in_threads(*calls, *denied)
  until(lambda: server.service.batcher.rows == 6)
  gate.open.set()
  first()
  found = wait()
  assert [status for status, *_ in found] == [200] * 4
  check(found[0][2]["predictions"][0], expected)
  assert found[2][2]["predictions"][0]["labels"][0] == expected[0][1]
  assert len(gate.sizes) == 3 and sum(gate.sizes) == 7


def test_clients_that_left_are_not_computed(server, gate):
  first = in_threads(lambda: server.predict(rows=[ROW]))
  gate.entered.wait(30)
  body = json.dumps({"rows": [ROW] * 3}).encode()
  connection = server.connect()
  connection.sendall(
    b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n" % len(body) + body
  )
  until(lambda: server.service.batcher.rows == 3)
  connection.close()
  until(lambda: server.service.batcher.rows == 0)
  gate.open.set()
  first()
  until(lambda: 499 in [line.get("status") for line in server.lines[-2:]])
  assert gate.sizes == [1]


def test_an_answer_that_takes_too_long_is_told(server, gate, monkeypatch):
  limits = dataclasses.replace(server.service.limits, timeout=0.2)
  monkeypatch.setattr(server.service, "limits", limits)
  status, _, said = server.predict(rows=[ROW])
  assert status == 504 and "0.2 s, --timeout" in said["error"]


def test_a_row_without_an_answer_costs_no_other_request(server, gate):
  first = in_threads(lambda: server.predict(rows=[ROW]))
  gate.entered.wait(30)
  calls = [
    lambda: server.predict(rows=[ROW]),
    lambda: server.predict(rows=[ROW, {"10": 3e38}]),
  ]
  wait = in_threads(*calls)
  until(lambda: server.service.batcher.rows == 3)
  gate.open.set()
  first()
  (good, *_), (bad, _, said) = wait()
  assert good == 200
  assert bad == 422 and said["error"].startswith("row 1: ")


def test_several_models_have_names(run_dir):
  directories = {"one": run_dir, "two": run_dir}
  with servers.running(directories) as server:
    for name in (None, "one", "two"):
      assert server.predict(rows=[ROW], model=name)[0] == 200
    _, _, found = server.call("GET", "/info")
    assert [model["name"] for model in found["models"]] == ["one", "two"]
    until(lambda: server.lines[-1].get("path") == "/info")
    asked = [line["model"] for line in server.lines if line.get("rows")]
    assert asked == ["one", "one", "two"]


def test_a_model_is_replaced_under_load(tmp_path):
  """Through a link that moves, and through a damaged one."""
  first, second = (conftest.write_run(tmp_path / x) for x in made_in(tmp_path))
  link = tmp_path / "current"
  link.symlink_to(first)
  (second / "labels.txt").write_text("".join(f"new {i}\n" for i in range(13)))
  ended, seen = threading.Event(), []

  def ask():
    while not ended.is_set():
      seen.append(server.predict(rows=[ROW], k=1)[::2])

  def reload():
    loop = asyncio.new_event_loop()
    try:
      loop.run_until_complete(server.service.reload_all())
    finally:
      loop.close()

  with servers.running({"model": link}) as server:
    wait = in_threads(ask, ask)
    until(lambda: len(seen) > 5)
    link.unlink()
    link.symlink_to(tmp_path / "third")  # which is not there
    reload()
    count = len(seen)
    until(lambda: len(seen) > count + 5)
    link.unlink()
    link.symlink_to(second)
    reload()
    count = len(seen)
    until(lambda: len(seen) > count + 5)
    ended.set()
    wait()
    events = [line for line in server.lines if line["event"] == "reload"]
    assert [line["error"] is None for line in events] == [False, True]
  assert {status for status, _ in seen} == {200}
  names = [found["predictions"][0]["names"][0] for _, found in seen]
  changes = sum(a != b for a, b in zip(names, names[1:]))
  assert not names[0].startswith("new") and names[-1].startswith("new")
  assert changes <= 2  # two clients may see the change in any order


def made_in(directory):
  for name in ("first", "second"):
    (directory / name).mkdir()
    yield name


def test_the_queue_takes_the_oldest_and_those_like_it():
  batches, opened = [], threading.Event()

  def compute(jobs):
    opened.wait(30)
    batches.append([job.work for job in jobs])
    return [job.work for job in jobs]

  async def ask():
    batcher = batching.Batcher(compute, batch_rows=2, max_waiting_rows=30)
    jobs = [batcher.submit("first", 1, 0, "first")]
    while batcher.rows:
      await asyncio.sleep(0.001)
    # Sorted by length in a window of eight rows; another key waits.
    for i, length in enumerate((5, 1, 4, 2, 9, 9, 9, 9, 0)):
      jobs.append(batcher.submit("a", 1, length, f"a{i}"))
      jobs.append(batcher.submit("b", 1, 1, f"b{i}"))
    batcher.drop(jobs[3])  # a1
    opened.set()
    for job in jobs[:3] + jobs[4:]:
      assert await job.future == job.work
    batcher.stop()

  asyncio.run(ask())
  assert batches[0] == ["first"]
  assert " ".join(map("+".join, batches[1:5])) == "a8+a3 a2+a0 a4+a5 a6+a7"
  assert [b for batch in batches[5:] for b in batch] == [
    f"b{i}" for i in range(9)
  ]


def test_a_stopping_server_says_so(run_dir):
  with servers.running({"first": run_dir}) as server:
    assert server.call("GET", "/ready")[0] == 200
    server.server._app.stopping = True
    assert server.call("GET", "/ready")[0] == 503
    assert server.call("GET", "/health")[0] == 200
    status, headers, said = server.predict(rows=[ROW])
    assert status == 503 and "stopping" in said["error"]
    assert headers["retry-after"] and headers["connection"] == "close"


def test_lines_hold_no_one_up(monkeypatch):
  monkeypatch.setattr(lines_lib, "_MOST", 10)
  reading, writing = map(os.fdopen, os.pipe(), "rw")
  lines = lines_lib.Lines(writing)
  for i in range(20_000):  # more than the pipe and the queue hold
    lines(number=i)
  found = []
  reader = threading.Thread(target=lambda: found.extend(reading))
  reader.start()
  until(lambda: not lines._waiting)
  lines(number="last")
  lines.close()
  writing.close()
  reader.join()
  found = [json.loads(line) for line in found]
  left_out = sum(line.get("lines_left_out", 0) for line in found)
  assert left_out > 0 and len(found) + left_out == 20_001
  assert found[-1]["number"] == "last"


@pytest.mark.slow
def test_sigterm_under_load_loses_nothing_that_was_accepted(run_dir):
  process = runs.launch(
    "serve", f"--model={run_dir}", "--port=0", "--batch_rows=4"
  )
  port = json.loads(process.stdout.readline())["port"]
  ended, seen = threading.Event(), []

  def ask():
    body = json.dumps({"rows": [ROW], "k": 3}).encode()
    while not ended.is_set():
      answer = b""
      try:
        with socket.create_connection(("127.0.0.1", port), 30) as connection:
          connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            % len(body)
            + body
          )
          while part := connection.recv(65536):
            answer += part
          seen.append(int(answer.split(b" ", 2)[1]))
      except ConnectionError:  # no server has accepted it
        assert not answer
        return

  wait = in_threads(*[ask] * 4)
  until(lambda: seen.count(200) > 100)
  os.kill(process.pid, signal.SIGTERM)
  wait()
  ended.set()
  status, out, err = runs.finish(process)
  assert status == 0, err
  assert set(seen) == {200, 503}  # nothing was cut off
  lines = [json.loads(line) for line in out.splitlines()]
  logged = [line["status"] for line in lines if line["event"] == "request"]
  assert logged.count(200) == seen.count(200)
  assert lines[-1]["event"] == "stopped"
