"""What hostile or mistaken clients are told, each by a server on loopback."""

import dataclasses
import http.client
import json
import socket

import pytest

from tests.serving import servers
from xlj.serving import connections

ROW = {"3": 1.0, "7": 0.5}
JSON = {"Content-Type": "application/json"}
DEEP = b"[" * 9_000


def predict(**fields):
  return json.dumps({"rows": [ROW], **fields}).encode()


def rows(text):
  return b'{"rows":[%s]}' % (text.encode() if isinstance(text, str) else text)


# Body of /predict, status and text of the refusal.
BODIES = {
  "nothing": (b"", 400, "no JSON"),
  "no JSON": (b"rows=1", 400, "no JSON"),
  "cut off": (b'{"rows": [{"3": 1', 400, "no JSON"),
  "something behind": (predict() + b"{}", 400, "trailing characters"),
  "no UTF-8": (rows(b'"\xff"'), 400, "UTF-8"),
  "half a character": (rows('"\\ud800"'), 400, "no JSON"),
  "a mark of byte order": (b"\xef\xbb\xbf" + predict(), 400, "no JSON"),
  "NaN": (rows('{"3": NaN}'), 400, "no JSON"),
  "infinity": (rows('{"3": -Infinity}'), 400, "no JSON"),
  "beyond float64": (rows('{"3": 1e999}'), 422, "out of range"),
  "beyond float32": (rows('{"3": 1e39}'), 422, "1e+39 at feature 3"),
  "deep": (rows(DEEP), 422, "got `array` - at `$.rows[0][0][0]`"),
  "deep where nothing is": (b'{"x":' + DEEP, 422, "unknown field `x`"),
  "a list": (b"[]", 422, "Expected `object`"),
  "no rows": (b"{}", 422, "missing required field `rows`"),
  "rows that are one": (b'{"rows": "a text"}', 422, "Expected `array`"),
  "an unknown field": (predict(tok_k=3), 422, "unknown field `tok_k`"),
  "empty rows": (b'{"rows": []}', 422, "at least one row"),
  "a row that is null": (rows("null"), 422, "got `null`"),
  "a row that is true": (rows("true"), 422, "got `bool`"),
  "a text": (rows('"a text"'), 422, "row 0 is a text; the model reads feat"),
  "a triple": (rows("[[3, 1, 1]]"), 422, "length 2"),
  "pairs and numbers": (rows("[[3, 1], 1]"), 422, "pairs and numbers"),
  "a short vector": (rows("[1, 2]"), 422, "a list of 2 values"),
  "an unknown feature": (rows('{"12": 1}'), 422, "from 0 to 11"),
  "a negative feature": (rows("[[-1, 1]]"), 422, "the feature -1"),
  "a long feature": (
    rows('{"%s": 1}' % ("9" * 9_000)),
    422,
    "whole numbers from 0 to 11",
  ),
  "an unknown name": (rows('{"dog": 1}'), 422, "'dog', and the model knows no"),
  "a feature twice": (rows('{"3": 1, "03": 1}'), 422, "feature 3 twice"),
  "a text for a number": (rows('{"3": "1"}'), 422, "text as the value"),
  "k of 0": (predict(k=0), 422, "from 1 to 13"),
  "k of 10^9": (predict(k=10**9), 422, "k is 1000000000; give a whole number"),
  "k of 10^300": (predict(k=10**300), 422, "from 1 to 13"),
  "k that is no number": (predict(k="5"), 422, "at `$.k`"),
  "k that is half": (predict(k=1.5), 422, "at `$.k`"),
  "an unknown label denied": (predict(deny=[1, 13]), 422, "deny has the label"),
  "a large label denied": (predict(deny=[2**70]), 422, "no label id"),
  "a name allowed": (predict(allow=["<b>"]), 422, "at `$.allow[0]`"),
  "a million denied": (predict(deny=[1] * 1_000_000), 413, "--max_bytes"),
  "a threshold in words": (predict(threshold="high"), 422, "`$.threshold`"),
  "a probability": (predict(min_probability=0.5), 422, "not calibrated"),
  "another model": (
    predict(model="../../etc"),
    404,
    "there are: first,",
  ),
  "too many rows": (
    json.dumps({"rows": [ROW] * 9}).encode(),
    413,
    "9 rows; at most 8, --max_rows",
  ),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_are_refused(server, name):
  body, status, text = BODIES[name]
  found, headers, said = server.call("POST", "/predict", body)
  assert found == status, said
  assert text in said["error"] and len(said["error"]) < 300
  assert headers["x-content-type-options"] == "nosniff"


def tensor(**fields):
  made = {"name": "features", "datatype": "FP32", "shape": [1, 2]}
  return json.dumps({"inputs": [{**made, "data": [1, 2], **fields}]}).encode()


INFER = "/v2/models/first/infer"
ANNIF = {"Content-Type": "application/x-www-form-urlencoded"}
# Method, path, body, headers, status and text of the refusal.
OTHERS = {
  "a page that posts": (
    *("POST", "/predict", predict(), {"Content-Type": "text/plain"}),
    *(415, "application/json"),
  ),
  "a compressed body": (
    *("POST", "/predict", b"x", {**JSON, "Content-Encoding": "gzip"}),
    *(415, "compressed"),
  ),
  "another method": ("GET", "/predict", None, {}, 405, "use POST"),
  "deleting": ("DELETE", "/labels/3", None, {}, 405, "use "),
  "a path upwards": ("GET", "/../../etc/passwd", None, {}, 404, "nothing at"),
  "an escaped path upwards": (
    *("GET", "/labels/%2e%2e%2f%2e%2e%2fetc", None, {}),
    *(404, "nothing at"),
  ),
  "a path with a zero": ("GET", "/labels/3%00", None, {}, 404, "no label"),
  "a long path": ("GET", "/" + "a" * 60_000, None, {}, 404, "nothing at"),
  "a label below 0": ("GET", "/labels/-1", None, {}, 404, "no label of that"),
  "a label in words": ("GET", "/labels/<b>", None, {}, 404, "no label of that"),
  "a large label": ("GET", f"/labels/{10**30}", None, {}, 404, "no label of"),
  "all neighbours": ("GET", "/labels/3?n=999", None, {}, 422, "from 0 to 100"),
  "another model": ("GET", "/v2/models/x", None, {}, 404, "no model of that"),
  "replacing a model": (
    *("POST", "/models/first/reload", b"{}", JSON),
    *(403, "start with --token"),
  ),
  "vectors of a model without": (
    *("POST", "/embed", rows('{"3": 1}'), JSON),
    *(422, "no encoder"),
  ),
  "no tensor": ("POST", INFER, b'{"inputs": []}', JSON, 422, "0 tensors"),
  "another tensor": (
    "POST",
    INFER,
    tensor(name="x"),
    JSON,
    422,
    "input is 'x'",
  ),
  "a tensor of texts": (
    *("POST", INFER, tensor(data=["a", "b"]), JSON),
    *(422, "is not FP32"),
  ),
  "a shape that lies": (
    *("POST", INFER, tensor(shape=[2**40, 2**40]), JSON),
    *(422, "its data has 2 values"),
  ),
  "a shape below 0": (
    *("POST", INFER, tensor(shape=[-1, -2]), JSON),
    *(422, "its data has 2 values"),
  ),
  "a form without a text": (
    *("POST", "/annif/suggest", b"limit=3", ANNIF),
    *(422, "no field text"),
  ),
  "a form with a limit in words": (
    *("POST", "/annif/suggest", b"text=a&limit=many", ANNIF),
    *(422, "limit is 'many'"),
  ),
  "a form of many fields": (
    *("POST", "/annif/suggest", b"a=1&" * 4_000, ANNIF),
    *(400, "no form"),
  ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_requests_are_refused(server, name):
  method, path, body, headers, status, text = OTHERS[name]
  connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
  connection.request(method, path, body, headers)
  found, _, said = servers.read(connection.getresponse())
  connection.close()
  assert found == status, said
  assert text in said["error"] and len(said["error"]) < 300


HEAD = (
  b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
)
# What is sent, whether again and again, and status and text of the refusal.
BYTES = {
  "no HTTP": (b"\x16\x03\x01 hello\r\n\r\n", b"", 400, "no valid request"),
  "two lengths": (
    HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    *(b"", 400, "no valid request"),
  ),
  "a negative length": (
    HEAD + b"Content-Length: -5\r\n\r\n",
    *(b"", 400, "no valid request"),
  ),
  "a header of two lines": (
    HEAD + b"X: a\r\n b: c\r\n\x00: d\r\n\r\n",
    *(b"", 400, "no valid request"),
  ),
  "endless headers": (HEAD, b"X-A: " + b"a" * 4000 + b"\r\n", 431, "65536"),
  "a huge body": (
    HEAD + b"Content-Length: 99999999999\r\n\r\n",
    *(b"", 413, "20000 bytes"),
  ),
  "an endless body": (
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
    *(b"1000\r\n" + b" " * 4096 + b"\r\n", 413, "20000 bytes"),
  ),
  "a slow head": (HEAD, b"", 408, "no request within 0.2 s"),
  "nothing at all": (b"", b"", 408, "no request within 0.2 s"),
  "a slow body": (
    HEAD + b"Content-Length: 50\r\n\r\n{",
    *(b"", 408, "the body took more than 0.3 s"),
  ),
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes_are_refused(server, name, monkeypatch):
  monkeypatch.setattr(connections, "HEADER_SECONDS", 0.2)
  limits = dataclasses.replace(server.service.limits, timeout=0.3)
  monkeypatch.setattr(server.service, "limits", limits)
  start, again, status, text = BYTES[name]
  with server.connect() as connection:
    connection.sendall(start)
    for _ in range(50 if again else 0):
      try:
        connection.sendall(again)
      except (BrokenPipeError, ConnectionResetError):
        break  # refused already
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    found, _, said = servers.read(answer)
    assert (found, text in said["error"]) == (status, True), said
    assert connection.recv(10) == b""  # and closed


def test_tokens_are_compared(run_dir):
  bearing = {"Authorization": f"Bearer {servers.TOKEN}"}
  with servers.running({"first": run_dir}, servers.TOKEN) as server:
    for wrong in (
      None,
      "",
      "Bearer",
      "Bearer a-secre",
      f"Basic {servers.TOKEN}",
      f"Bearer {servers.TOKEN}x",
      "Bearer ü",
    ):
      headers = {} if wrong is None else {"Authorization": wrong}
      for path in ("/info", "/metrics", "/labels/3", "/nothing"):
        status, answer, said = server.call("GET", path, **headers)
        assert status == 401 and "Bearer TOKEN" in said["error"]
        assert answer["www-authenticate"] == "Bearer"
    assert server.call("GET", "/health")[0] == 200
    assert server.call("GET", "/info", **bearing)[0] == 200
    # A model that is none: the old one stays.
    path = "/models/first/reload"
    status, _, said = server.call("POST", path, {"dir": "/nowhere"}, **bearing)
    assert status == 422 and "the model that was there is kept" in said["error"]
    asked = {"rows": [ROW]}
    assert server.call("POST", "/predict", asked, **bearing)[0] == 200
    text = json.dumps(server.lines)
    assert servers.TOKEN not in text and "/nowhere" in text


def test_too_many_connections_are_refused(server, monkeypatch):
  monkeypatch.setattr(connections, "MAX_CONNECTIONS", 1)
  with server.connect(), server.connect() as connection:
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    status, _, said = servers.read(answer)
    assert status == 503 and "too many connections" in said["error"]


def test_one_who_does_not_read_is_left(server, monkeypatch):
  monkeypatch.setattr(connections, "WRITE_SECONDS", 0.2)
  page = b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n"
  with server.connect() as connection:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(30)
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
      while True:
        connection.sendall(page * 1000)
