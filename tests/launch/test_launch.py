"""The launchers as processes: the contract, refusals, kill and resume."""

import json
import signal
import time

import numpy as np
import pytest

from tests import runs
import xlj
from xlj.evaluation import evaluate

XMC = f"--config={runs.ROOT}/configs/xmc.py"
SMALL = (
  "--config.family=network",
  "--config.encoder.dim=16",
  "--config.head.blocks=8",
  "--config.train.batch_size=64",
  "--config.train.num_steps=40",
  "--config.train.log_every=1",
  "--config.checkpoint.every=5",
  "--config.eval.every=20",
)


def train_arguments(data_dir, workdir, *more):
  return XMC, f"--config.data.dir={data_dir}", f"--workdir={workdir}", *more


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
  """A complete run."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  process = runs.launch("train", *train_arguments(data_dir, workdir, *SMALL))
  status, _, err = runs.finish(process)
  assert status == 0, err
  return workdir


@pytest.mark.slow
def test_train_leaves_what_people_look_at(trained):
  for name in ("config.json", "machine.json", "metrics.jsonl", "report.html"):
    assert (trained / name).stat().st_size > 0
  assert list((trained / "tensorboard").iterdir())
  steps = [row["step"] for row in runs.records(trained, "train")]
  assert steps == list(range(1, 41))


def test_evaluate_prints_a_table_and_a_line_of_json(trained):
  status, out, err = runs.finish(
    runs.launch("evaluate", f"--workdir={trained}", devices=4)
  )
  assert status == 0, err
  *table, last = out.strip().splitlines()
  found = json.loads(last)
  names = ("P@1", "P@3", "P@5", "nDCG@5", "PSP@1", "PSnDCG@3", "Recall@5")
  assert all(0 <= found[name] <= 100 for name in names)
  assert any("popularity" in line and "best possible" in line for line in table)
  stored = json.loads((trained / "evaluation.json").read_text())
  best = stored["baselines"]["best possible"]["P@1"]
  popular = stored["baselines"]["popularity"]["P@1"]
  assert popular < found["P@1"] <= best
  assert len(stored["deciles"]) > 1
  assert "popularity" in (trained / "report.html").read_text()


@pytest.mark.slow
def test_predictions_are_changed_when_a_run_is_read(trained):
  rows = [{3: 2.0, 40: 1.0}, {7: 1.0}]
  plain = xlj.load(trained, predict={"propensity_power": 0.0})
  run = xlj.load(trained)
  assert plain.config.predict.propensity_power == 0
  assert run.config.predict.propensity_power == 0.5
  assert not np.allclose(plain.topk(rows, 3)[0], run.topk(rows, 3)[0])
  scores = evaluate.evaluate(trained, predict={"propensity_power": 0.0})
  status, out, err = runs.launch_to_end(
    "evaluate", f"--workdir={trained}", "--predict.propensity_power=0"
  )
  assert status == 0, err
  found = json.loads(out.strip().splitlines()[-1])
  assert found["P@1"] == pytest.approx(scores["P@1"])
  assert found["PSP@1"] != evaluate.evaluate(trained)["PSP@1"]
  status, _, err = runs.launch_to_end(
    "evaluate", f"--workdir={trained}", "--predict.propensity_powr=0"
  )
  assert status == 2
  assert err.strip().splitlines()[-1] == (
    "error: there is no config field 'predict.propensity_powr'; did you mean"
    " 'predict.propensity_power'?"
  )


def test_predict_writes_tsv_and_jsonl_and_reads_a_pipe(
  trained, data_dir, tmp_path
):
  source = data_dir / "test.txt"
  outputs = {}
  for name in ("rows.jsonl", "rows.tsv"):
    path = tmp_path / name
    status, _, err = runs.launch_to_end(
      "predict",
      f"--workdir={trained}",
      f"--input={source}",
      f"--output={path}",
      "--k=3",
    )
    assert status == 0, err
    outputs[name] = path.read_text().splitlines()
  rows = [json.loads(line) for line in outputs["rows.jsonl"]]
  assert len(rows) == runs.SPEC.num_test == len(outputs["rows.tsv"])
  names = (data_dir / "labels.txt").read_text().splitlines()
  for row, line in zip(rows, outputs["rows.tsv"]):
    assert len(row["labels"]) == len(set(row["labels"])) == 3
    assert row["scores"] == sorted(row["scores"], reverse=True)
    assert row["names"] == [names[i] for i in row["labels"]]
    cells = [cell.rsplit(":", 1) for cell in line.split("\t")]
    assert [cell[0] for cell in cells] == row["names"]
  with source.open() as stdin:
    status, out, err = runs.finish(
      runs.launch(
        "predict",
        f"--workdir={trained}",
        "--input=-",
        "--output=-",
        "--k=3",
        stdin=stdin,
      )
    )
  assert status == 0, err
  assert out.splitlines() == outputs["rows.tsv"]


def test_load_predicts_like_the_launcher(trained, data_dir):
  run = xlj.load(trained)
  scores, ids = run.topk([{3: 2.0, 40: 1.0}, {}, {7: 1.0}], k=4)
  assert scores.shape == ids.shape == (3, 4)
  dense = np.zeros((3, run.num_features), np.float32)
  dense[0, 3], dense[0, 40], dense[2, 7] = 2, 1, 1
  again = run.topk(dense, k=4)
  np.testing.assert_array_equal(again[1], ids)
  np.testing.assert_allclose(again[0], scores, rtol=1e-5)
  with pytest.raises(ValueError, match="k is 0"):
    run.topk(dense, k=0)
  with pytest.raises(ValueError, match="the examples have"):
    run.topk(np.zeros((1, run.num_features + 1), np.float32), k=1)


@pytest.mark.slow
def test_killed_and_run_again_the_curve_is_the_same(
  trained, data_dir, tmp_path
):
  workdir = tmp_path / "run"
  arguments = train_arguments(data_dir, workdir, *SMALL)
  rng = np.random.default_rng()
  for _ in range(2):
    process = runs.launch("train", *arguments)
    target = int(rng.integers(6, 36))
    wait_for_step(workdir, target, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
  status, _, err = runs.finish(runs.launch("train", *arguments))
  assert status == 0, err
  for kind in ("train", "eval"):
    assert runs.records(workdir, kind) == runs.records(trained, kind)


def wait_for_step(workdir, step, process):
  deadline = time.monotonic() + 120
  while time.monotonic() < deadline and process.poll() is None:
    try:
      if len(runs.records(workdir, "train")) >= step:
        return
    except (FileNotFoundError, json.JSONDecodeError):
      pass
    time.sleep(0.02)


REFUSALS = {
  "unknown field": (
    ("--config.data.dri=x",),
    "there is no config field 'data.dri'; did you mean 'data.dir'?",
  ),
  "wrong type": (("--config.train.batch_size=many",), "train.batch_size"),
  "unknown flag": (("--wrokdir=x",), "wrokdir"),
  "left-over argument": (("surplus",), "unexpected arguments: surplus"),
  "no such data": (("--config.data.dir=/nowhere",), "/nowhere"),
  "no directory": (("--workdir=",), "workdir is empty"),
  "no such config": (
    ("--config=x.py",),
    "--config=x.py: there is no file x.py",
  ),
  "bad value": (("--config.head.loss=hinge",), "head.loss is 'hinge'"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_train_refuses_with_one_clear_last_line(case, data_dir, tmp_path):
  more, message = REFUSALS[case]
  arguments = train_arguments(data_dir, tmp_path / "run", *more)
  status, _, err = runs.launch_to_end("train", *arguments)
  last = err.strip().splitlines()[-1]
  assert status == 2
  assert last.startswith("error: ") and message in last, err


def test_a_workdir_of_another_config_is_refused(trained, data_dir):
  more = (*SMALL, "--config.train.batch_size=32")
  status, _, err = runs.launch_to_end(
    "train", *train_arguments(data_dir, trained, *more)
  )
  assert status == 2
  assert "train.batch_size: 64 there, 32 now" in err.splitlines()[-1]


@pytest.mark.parametrize("name", ["evaluate", "predict"])
def test_a_directory_without_a_run_is_refused(name, tmp_path):
  more = ["--input=x", "--output=y"] if name == "predict" else []
  status, _, err = runs.launch_to_end(name, f"--workdir={tmp_path}", *more)
  assert status == 2
  assert "is this the working directory of a run?" in err.splitlines()[-1]


BUCKET = "gs://bucket/run"


@pytest.mark.parametrize(
  "name,arguments",
  [
    ("train", (XMC, f"--workdir={BUCKET}")),
    ("train", (f"--workdir={BUCKET}",)),
    ("evaluate", (f"--workdir={BUCKET}",)),
    ("predict", (f"--workdir={BUCKET}", "--input=x", "--output=y")),
    ("labels", (f"--workdir={BUCKET}", "--list")),
    ("average", (f"--workdirs={BUCKET}", "--output=x")),
    ("average", ("--workdirs=x", f"--output={BUCKET}")),
  ],
)
def test_a_bucket_as_a_working_directory_is_refused(name, arguments):
  status, _, err = runs.launch_to_end(name, *arguments)
  assert status == 2
  (last,) = err.strip().splitlines()
  assert f"is {BUCKET}, a bucket" in last
  assert "--config.checkpoint.dir=gs://" in last


def test_a_bucket_as_a_working_directory_is_refused_in_python():
  with pytest.raises(ValueError, match=f"{BUCKET}, a bucket"):
    xlj.load(BUCKET)


def test_predict_refuses_a_bad_input_and_leaves_no_output(trained, tmp_path):
  source, output = tmp_path / "bad.txt", tmp_path / "out.tsv"
  source.write_text("2 500 700\n1 3:1\n1 3:x\n")
  status, _, err = runs.launch_to_end(
    "predict",
    f"--workdir={trained}",
    f"--input={source}",
    f"--output={output}",
  )
  assert status == 2
  assert f"{source}:3" in err.splitlines()[-1]
  assert not output.exists()


@pytest.mark.parametrize(
  "name, flag, others",
  [
    ("images", "output_dir", ["--input=folder"]),
    ("corrupt", "output_dir", ["--data_dir=data", "--mode=missing"]),
    ("demo", "directory", []),
  ],
)
def test_a_bucket_is_no_place_for_files(name, flag, others, tmp_path):
  url = "gs://bucket/place"
  status, _, err = runs.launch_to_end(name, f"--{flag}={url}", *others)
  assert status == 2
  assert f"error: --{flag} is {url}, a bucket; give a path of a file" in err
