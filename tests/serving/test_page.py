"""The page at /: what it may load, what it shows, in a real browser."""

import base64
import hashlib
import re

import numpy as np
from PIL import Image
import pytest

from tests.inference import test_predictor
from tests.serving import browser
from tests.serving import conftest
from tests.serving import servers
from xlj.data import images
from xlj.inference import calibration as calibration_lib
from xlj.inference import contributions
from xlj.inference import predictor

HOSTILE = (
  "<img src=x onerror=\"window.hacked='img'\">",
  "</bdi><script>window.hacked='script'</script>",
  "<svg onload=\"window.hacked='svg'\">",
  "javascript:window.hacked='link'",
  "\u202egnp.exe",
  "a" * 300,
)


def test_no_script_runs_but_the_pages_own(server):
  status, headers, page = server.call("GET", "/")
  assert status == 200
  text = page.decode()
  (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  policy = headers["content-security-policy"]
  assert f"script-src 'sha256-{digest}'" in policy
  assert "default-src 'none'" in policy and "connect-src 'self'" in policy
  # No handlers in attributes, which the policy would not run, and nothing that
  # becomes markup.
  assert not re.search(r"<[^>]* on\w+=", text)
  assert not re.search(r"innerHTML|outerHTML|insertAdjacent|eval\(", text)


def test_the_page_needs_nothing_from_elsewhere(server):
  text = server.call("GET", "/")[2].decode()
  assert not re.search(r"https?://|@import|src=", text)
  assert re.findall(r'href="([^"]*)"', text) == ["data:,"]


def test_why_has_names_and_near_rows(server, monkeypatch):
  answers = server.models.get(None).answers
  asked = {"row": {"3": 1.0, "7": 2.0}, "labels": [4, 0], "n": 2}
  wanted = answers.why([{3: 1.0, 7: 2.0}], [4, 0], 2)
  status, _, found = server.call("POST", "/why", asked)
  assert status == 200 and found["rows"] == []
  assert [
    [(each["feature"], each["contribution"]) for each in reasons]
    for reasons in found["why"]
  ] == wanted
  names = [f"<b>{i}" for i in range(answers.num_features)]
  monkeypatch.setitem(vars(answers), "feature_names", names)
  near = contributions.NearRow(17, 0.5, [0, 5])
  monkeypatch.setattr(answers, "near_rows", lambda row, n: [near])
  found = server.call("POST", "/why", asked)[2]
  for reasons in found["why"]:
    assert all(e["name"] == names[e["feature"]] for e in reasons)
  labels = {"labels": [0, 5], "names": [conftest.NAMES[0], "label 5"]}
  assert found["rows"] == [{"row": 17, "cosine": 0.5, **labels}]


# --- in a browser ------------------------------------------------------------

in_browser = pytest.mark.skipif(
  browser.CHROMIUM is None, reason="no chromium here: apt-get install chromium"
)


@pytest.fixture(scope="module")
def hostile_dir(tmp_path_factory):
  """A run whose labels have the names of HOSTILE."""
  workdir = test_predictor.write_run(
    tmp_path_factory.mktemp("hostile"), dense=False
  )
  names = [HOSTILE[i % len(HOSTILE)] + f" {i}" for i in range(test_predictor.L)]
  (workdir / "labels.txt").write_text("".join(f"{name}\n" for name in names))
  (workdir / "feature_names.txt").write_text(
    "".join(f"{HOSTILE[0]}{i}\n" for i in range(test_predictor.F))
  )
  return workdir


@pytest.fixture(scope="module")
def page():
  with browser.page() as found:
    yield found


def opened(page, server):
  """The page of a server, when it knows the model."""
  page.events.clear()
  page.open(f"http://127.0.0.1:{server.port}/")
  return page


def ready(page):
  page.wait("model !== null")


def answered(page, count):
  page.wait(f"document.querySelectorAll('#results button').length === {count}")


@in_browser
@pytest.mark.slow
def test_labels_why_and_neighbours_by_keyboard_alone(
  page, hostile_dir, monkeypatch
):
  def refuse(*_):
    raise ValueError("<i>not that</i>")

  with servers.running({"first": hostile_dir}) as server:
    ready(opened(page, server))
    answers = server.models.get(None).answers
    page.type("3:1 7:2")
    page.press("Enter")
    answered(page, 10)
    scores, ids = answers.topk([{3: 1.0, 7: 2.0}], 10)
    shown = page.evaluate(
      "[...document.querySelectorAll('#results button')].map("
      "b => [Number(b.dataset.label), b.querySelector('bdi').textContent,"
      " b.querySelector('b').textContent])"
    )
    for (label, name, text), wanted, score in zip(shown, ids[0], scores[0]):
      assert label == wanted
      assert name == answers.names([wanted])[0]
      assert float(text) == pytest.approx(score, abs=0.051)
    # The widths fall with the scores.
    widths = page.evaluate(
      "[...document.querySelectorAll('#results i')].map(i => i.offsetWidth)"
    )
    assert widths == sorted(widths, reverse=True) and widths[-1] > 0

    page.press("ArrowDown")
    page.press("ArrowDown")
    page.press("ArrowUp")
    page.press("ArrowDown")  # the second one
    page.press("Enter")
    page.wait("document.querySelectorAll('#parts h3').length > 1")
    second = int(ids[0, 1])
    text = page.evaluate("$('details').textContent")
    assert answers.names([second])[0] in text
    assert f"{answers.label_counts()[second]} training row" in text
    for feature, _ in answers.why([{3: 1.0, 7: 2.0}], [second], 8)[0]:
      assert f"{HOSTILE[0]}{feature}" in text
    near, _ = answers.neighbours_of(second, 8)
    for name in answers.names(near):
      assert name in text
    # A neighbour opens in its turn; what cannot be said of it is told.
    monkeypatch.setattr(answers, "why", refuse)
    page.evaluate("document.querySelector('#parts button').click()")
    name = answers.names(near[:1])[0]
    page.wait(f"$('name').textContent === {name!r}")
    page.wait("document.querySelectorAll('#parts h3').length > 1")
    assert "<i>not that</i>" in page.text()

    page.press("Escape")
    assert page.evaluate("$('details').hidden")
    page.press("Escape")
    assert page.evaluate("document.activeElement.id") == "input"
    # Nothing in a name has become anything but text.
    assert page.evaluate("window.hacked") is None
    kinds = page.evaluate(
      "[...document.body.querySelectorAll('*')].map(e => e.localName)"
    )
    assert not {"img", "svg", "a"} & set(kinds)
    assert kinds.count("script") == 1
    methods = [event["method"] for event in page.events]
    assert "Page.javascriptDialogOpening" not in methods
    assert "Runtime.exceptionThrown" not in methods
    # Nothing was fetched but from the server, and nothing was refused.
    urls = {
      event["params"]["request"]["url"]
      for event in page.events
      if event["method"] == "Network.requestWillBeSent"
    }
    home = f"http://127.0.0.1:{server.port}/"
    assert all(url.startswith((home, "data:")) for url in urls), urls
    logged = [
      event["params"]["entry"]
      for event in page.events
      if event["method"] == "Log.entryAdded"
    ]
    assert [entry["source"] for entry in logged] == ["network"]  # of "not that"


@in_browser
@pytest.mark.slow
def test_what_is_wrong_is_said(page, hostile_dir):
  with servers.running({"first": hostile_dir}, token=servers.TOKEN) as server:
    opened(page, server)
    page.wait("!$('secret').hidden")
    assert "give the token of the server" in page.text()
    page.evaluate("$('token').focus()")
    page.type("wrong")
    page.press("Enter")
    page.wait("$('state').textContent.startsWith('give the token')")
    page.evaluate("$('token').value = ''; $('token').focus()")
    page.type(servers.TOKEN)
    page.press("Enter")
    page.wait("document.activeElement.id === 'input'")
    for text, said in (
      (" ", "Paste the features of a row first"),
      ("3:x", "x is no number"),
      ("3:1 3:2", "3 is there twice"),
      ("99:1", "feature 99"),
      ("{3:", "begins as JSON, but is none"),
      ('{"3": 1, "<b>": 1}', "names the feature '<b>'"),
    ):
      page.evaluate("$('input').value = ''; $('input').focus()")
      page.type(text)
      page.press("Enter")
      page.wait(f"$('state').textContent.includes({said!r})")
      assert page.evaluate("$('state').className") == "bad"
    page.evaluate("$('input').value = '3:1'; $('threshold').value = '1e9'")
    page.press("Enter")
    page.wait("$('state').textContent.startsWith('None of them')")
    page.evaluate("$('threshold').value = ''; $('k').value = '3'")
    page.press("Enter")
    answered(page, 3)


@in_browser
@pytest.mark.slow
def test_probabilities_of_a_calibrated_model(page, hostile_dir):
  with servers.running({"first": hostile_dir}) as server:
    server.models.get(None).calibration = calibration_lib.Calibration(
      slopes=np.array([1.0]),
      biases=np.array([0.0]),
      place=0.0,
      buckets=np.zeros(0),
      thresholds=np.zeros(0),
      precisions=np.zeros(0),
    )
    ready(opened(page, server))
    scores, _ = server.models.get(None).answers.topk([{3: 1.0}], 10)
    shares = 100 / (1 + np.exp(-scores[0]))
    page.type("3:1")
    page.press("Enter")
    answered(page, 10)
    shown = page.evaluate(
      "[...document.querySelectorAll('#results b')].map(b => b.textContent)"
    )
    for text, wanted in zip(shown, shares):
      assert text.endswith(" %")
      assert float(text[:-2]) == pytest.approx(wanted, abs=0.051)
    least = (shares[1] + shares[2]) / 2
    page.evaluate(f"$('threshold').value = '{least}'")
    page.press("Enter")
    answered(page, 2)


@in_browser
@pytest.mark.slow
def test_an_image_is_cut_and_made_small(page, tmp_path, monkeypatch):
  workdir = test_predictor.write_run(tmp_path, dense=True)
  load = predictor.load

  def as_images(directory, **_):  # of 2 x 2 pixels and three channels
    found = load(directory)
    with found.config.unlocked():
      found.config.encoder.image = (2, 2, 3)
    return found

  monkeypatch.setattr(predictor, "load", as_images)
  with servers.running({"first": workdir}) as server:
    ready(opened(page, server))
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (5, 7, 3)).repeat(9, 0).repeat(11, 1)
    path = tmp_path / "<b>.png"
    Image.fromarray(blocks.astype(np.uint8)).save(path)
    page.choose_file("#file", path)
    answered(page, 10)
    image = page.evaluate("image")
    # As training has it, but for roundings.
    ((wanted,),) = (rows.features for rows in images.stream(path, (2, 2, 3)))
    assert np.abs(np.array(image) - wanted.ravel().astype(int)).max() <= 1
    assert np.ptp(wanted) > 50
    scores, ids = server.models.get(None).answers.topk([image], 10)
    shown = page.evaluate(
      "[...document.querySelectorAll('#results button')].map("
      "b => Number(b.dataset.label))"
    )
    assert shown == ids[0].tolist()
    assert "<b>.png" in page.text()


@in_browser
@pytest.mark.slow
@pytest.mark.parametrize("width, dark", [(390, False), (1280, True)])
def test_it_fits_a_phone_and_is_dark_at_night(page, hostile_dir, width, dark):
  with servers.running({"first": hostile_dir}) as server:
    page.look(width, 844, dark)
    ready(opened(page, server))
    page.type("3:1")
    page.press("Enter")
    answered(page, 10)
    page.press("ArrowDown")
    page.press("Enter")
    page.wait("document.querySelectorAll('#parts h3').length > 1")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    color = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", color)[:3])) < 200) == dark
    beside = page.evaluate(
      "$('details').getBoundingClientRect().left >="
      " $('results').getBoundingClientRect().right"
    )
    assert beside == (width > 720)
    page.look(1280, 844)
