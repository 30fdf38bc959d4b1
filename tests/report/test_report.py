"""The report: what it says, that it stands alone, and that gaps are fine."""

import html.parser
import json
import pathlib
import re
import tempfile
import types
import xml.etree.ElementTree

from absl.testing import absltest
import numpy as np

import xlj
from xlj.evaluation import metrics
from xlj.evaluation import pairs
from xlj.report import figures
from xlj.report import machine
from xlj.report import progress
from xlj.report import report

# Attributes by which a page loads something or leads elsewhere.
_LOADING = ("src", "href", "xlink:href", "data", "action", "srcset")
_VOID = ("meta", "link", "br", "img", "input", "hr")


class Checker(html.parser.HTMLParser):
  """Collects headings, text, references and ids, and checks the nesting."""

  def __init__(self):
    super().__init__()
    self.open, self.headings, self.text = [], [], []
    self.references, self.ids, self.tags = [], [], []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.references += [v for k, v in attrs if k in _LOADING]
    self.ids += [v for k, v in attrs if k == "id"]
    if tag not in _VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    self.handle_endtag(tag)

  def handle_endtag(self, tag):
    if tag not in _VOID:
      assert self.open.pop() == tag, tag

  def handle_data(self, data):
    if self.open and self.open[-1] in ("h1", "h2"):
      self.headings.append(data)
    if "style" not in self.open:
      self.text.append(data)


def evaluated() -> metrics.Ranking:
  """The metrics of a small data set with a label in every decile."""
  rng = np.random.default_rng(0)
  ranking = metrics.Ranking(
    50,
    propensities=np.linspace(1, 0.1, 50),
    deciles=np.arange(50) // 5 + 1,
    label_counts=np.arange(50)[::-1] * 40_000,
  )
  labels = np.sort(np.argsort(rng.random((30, 50)), axis=1)[:, :6], axis=1)
  truth = pairs.LabelRows(np.arange(31) * 6, labels.ravel())
  ranking.update(np.argsort(rng.random((30, 50)), axis=1), truth)
  return ranking


class ReportTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.workdir = pathlib.Path(folder) / "my-run"
    self.workdir.mkdir()

  def write(self, name: str, value) -> None:
    (self.workdir / name).write_text(json.dumps(value))

  def write_run(self, steps: int = 1000) -> metrics.Ranking:
    with progress.MetricWriter(self.workdir) as writer:
      for step in range(10, steps + 1, 10):
        writer.write(step, "train", {"loss": 5 / step})
        if step % 100 == 0:
          writer.write(step, "eval", {f"P@{k}": step / 20 for k in (1, 3, 5)})
    data = {"dir": "/data/bibtex/", "num_labels": 50, "num_rows": 12345}
    train = {"num_steps": 1000, "batch_size": 64}
    self.write("config.json", {"data": data, "train": train, "seed": 7})
    self.write("machine.json", machine.facts())
    seconds = {"steps": 5400.0, "start": 90.0, "lost": 510.0, "input": 0.0}
    self.write("goodput.json", {"step": steps, "seconds": seconds})
    ranking = evaluated()
    self.write(
      "evaluation.json",
      {
        "split": "test",
        "step": steps,
        "metrics": ranking.compute(),
        "deciles": ranking.deciles(),
        "baselines": {"popularity": {"P@1": 12.345, "P@3": 1.0}},
      },
    )
    return ranking

  def report(self) -> Checker:
    path = report.write_report(self.workdir)
    self.assertEqual(path, self.workdir / "report.html")
    checker = Checker()
    checker.feed(path.read_text(encoding="utf-8"))
    checker.close()
    self.assertEmpty(checker.open)
    return checker

  def test_whole_run(self):
    ranking = self.write_run()
    page = self.report()
    text = " ".join(page.text)
    self.assertEqual(page.headings[0], "bibtex")
    self.assertIn("complete", text)
    self.assertIn("50 labels, from 12,345 training points", text)
    for value in ranking.compute().values():
      self.assertIn(f"{value:.2f}", text)
    self.assertIn("popularity", text)
    self.assertIn("12.35", text)  # rounded to the table's two digits
    self.assertEqual(page.tags.count("svg"), 4)
    for label in ("training loss", "coverage@5", "10", "0–160k", "1.8M–1.96M"):
      self.assertIn(label, page.text)
    self.assertIn("Where the time went", page.headings)
    self.assertIn("went into steps, is 90.0%", text)
    for line in ("1:30:00, 90.0%", "1:30, 1.5%", "8:30, 8.5%"):
      self.assertIn(line, page.text)
    self.assertNotIn("waiting for input", page.text)
    for fact in ("train.num_steps", "1000", "python", "cores"):
      self.assertIn(fact, page.text)

  def test_stands_alone(self):
    self.write_run()
    page = self.report()
    text = (self.workdir / "report.html").read_text(encoding="utf-8")
    self.assertTrue(all(ref.startswith("#") for ref in page.references))
    self.assertNotIn("script", page.tags)
    self.assertNotIn("link", page.tags)
    self.assertNotRegex(text, r"@import|url\((?!#)")
    self.assertLen(set(page.ids), len(page.ids))
    used = {ref[1:] for ref in page.references}
    used |= set(re.findall(r"url\(#([^)]*)\)", text))
    self.assertNotEmpty(used)
    self.assertLessEqual(used, set(page.ids))

  def test_a_folder_with_nothing(self):
    page = self.report()
    self.assertEqual(page.headings[0], "my-run")
    self.assertIn("not started", page.text)
    self.assertNotIn("svg", page.tags)
    self.assertIn("No step is recorded yet.", page.text)

  def test_a_run_under_way(self):
    self.write_run(steps=500)
    (self.workdir / "evaluation.json").write_text('{"metrics": {"P@')
    with (self.workdir / "metrics.jsonl").open("a") as file:
      file.write('{"step": 51')
    page = self.report()
    self.assertIn("at step 500 of 1,000", page.text)
    self.assertEqual(page.tags.count("svg"), 2)
    self.assertIn("Not evaluated by label frequency yet.", page.text)

  def test_text_is_escaped(self):
    self.write("config.json", {"data": {"dir": "/x/<script>"}})
    self.write("evaluation.json", {"metrics": {"P@1": 1}, "split": "<i>"})
    page = self.report()
    self.assertNotIn("script", page.tags)
    self.assertNotIn("i", page.tags)
    self.assertIn("<script>", page.text)

  def test_a_loss_that_is_not_finite(self):
    with progress.MetricWriter(self.workdir) as writer:
      writer.write(1, "train", {"loss": 1.0})
      writer.write(2, "train", {"loss": float("nan")})
    self.assertEqual(self.report().tags.count("svg"), 1)


class FiguresTest(absltest.TestCase):
  def test_long_lines_are_averaged(self):
    x = np.arange(100_000.0)
    y = np.random.default_rng(0).normal(size=x.size)
    svg = figures.line_chart("a", {"b": (x, y)}, x_label="x", y_label="y")
    self.assertLess(len(svg), 40_000)
    xml.etree.ElementTree.fromstring(svg)

  def test_colours_follow_the_page(self):
    svg = figures.bar_chart(
      "a", ["one", "two"], {"b": [1, 2]}, x_label="x", y_label="y"
    )
    self.assertIn("currentColor", svg)
    self.assertNotRegex(svg, "#0[01]0[02]0[03]")
    self.assertNotIn("<style", svg)


class MachineTest(absltest.TestCase):
  def test_facts(self):
    devices = [
      types.SimpleNamespace(device_kind="NVIDIA H200", process_index=i // 4)
      for i in range(8)
    ]
    found = machine.facts(devices)
    self.assertEqual(found["devices"], "NVIDIA H200 × 8")
    self.assertEqual(found["processes"], 2)
    self.assertGreaterEqual(found["cores"], 1)
    self.assertEqual(found["versions"]["numpy"], np.__version__)
    self.assertEqual(found["versions"]["xlj"], xlj.__version__)
    json.dumps(found)

  def test_the_most_memory_that_any_process_of_a_run_has_had(self):
    devices = [
      types.SimpleNamespace(memory_stats=lambda: {"peak_bytes_in_use": 2**31}),
      types.SimpleNamespace(memory_stats=lambda: None),  # of CPUs
    ]
    found = machine.with_peak({"cores": 2}, devices)
    self.assertEqual(found["cores"], 2)
    self.assertEqual(found["peak_device_memory_gib"], 2)
    self.assertBetween(found["peak_memory_gib"], 0.01, 1000)
    before = {"peak_memory_gib": 1e6, "peak_device_memory_gib": 1}
    found = machine.with_peak(before)
    self.assertEqual(found, before)


if __name__ == "__main__":
  absltest.main()
