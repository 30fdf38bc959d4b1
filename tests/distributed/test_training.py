"""Launchers as several processes: the same numbers as one, and one voice."""

import json
import signal

import numpy as np
import pytest

from tests import processes
from tests import runs
from tests.launch import test_launch

ARGUMENTS = (
  *test_launch.SMALL,
  "--config.checkpoint.every=10",
  "--config.train.num_steps=30",
)
LINEAR = ("--config.family=linear", "--config.encoder.dim=0")
linear = pytest.mark.parametrize("alone", [LINEAR], indirect=True)


def arguments(data_dir, workdir, *more):
  return test_launch.train_arguments(data_dir, workdir, *ARGUMENTS, *more)


@pytest.fixture(scope="module")
def alone(request, data_dir, tmp_path_factory):
  """A complete run of one process, with more arguments if they are given."""
  workdir = tmp_path_factory.mktemp("alone") / "run"
  more = getattr(request, "param", ())
  status, _, err = runs.finish(
    runs.launch("train", *arguments(data_dir, workdir, *more), devices=2)
  )
  assert status == 0, err
  return workdir


def series(workdir, kind, name):
  return [row[name] for row in runs.records(workdir, kind)]


@pytest.mark.slow
@linear
def test_two_processes_train_as_one_does(data_dir, alone, tmp_path):
  workdir = tmp_path / "run"
  processes.succeed(
    processes.launch(
      "train", 2, *arguments(data_dir, workdir, *LINEAR), devices=2
    )
  )
  check_same_run(workdir, alone)
  assert (workdir / "report.html").stat().st_size > 0


@pytest.mark.slow
def test_four_processes_train_as_one_does(data_dir, alone, tmp_path):
  workdir = tmp_path / "run"
  processes.succeed(processes.launch("train", 4, *arguments(data_dir, workdir)))
  check_same_run(workdir, alone)


def check_same_run(workdir, other):
  losses = series(workdir, "train", "loss")
  expected = series(other, "train", "loss")
  assert len(losses) == 30
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  np.testing.assert_allclose(
    series(workdir, "eval", "P@1"), series(other, "eval", "P@1"), atol=0.51
  )


@pytest.mark.slow
def test_two_processes_evaluate_and_predict_as_one_does(
  data_dir, alone, tmp_path
):
  workdir = alone
  found = {}
  for count in (1, 2):
    outputs = processes.succeed(
      processes.launch("evaluate", count, f"--workdir={workdir}")
    )
    found[count] = json.loads(outputs[0].strip().splitlines()[-1])
    assert not any(
      line.startswith("{") for line in "".join(outputs[1:]).split()
    )
  assert found[1].keys() == found[2].keys()
  for name, value in found[1].items():
    np.testing.assert_allclose(found[2][name], value, rtol=1e-6, err_msg=name)
  rows = {}
  for count in (1, 2):
    output = tmp_path / f"{count}.jsonl"
    processes.succeed(
      processes.launch(
        "predict",
        count,
        f"--workdir={workdir}",
        f"--input={data_dir / 'test.txt'}",
        f"--output={output}",
        "--k=3",
      )
    )
    rows[count] = [json.loads(line) for line in output.open()]
  assert len(rows[2]) == len(rows[1]) == runs.SPEC.num_test
  for one, two in zip(rows[1], rows[2]):
    assert one["labels"] == two["labels"]
    np.testing.assert_allclose(one["scores"], two["scores"], rtol=1e-4)


@pytest.mark.slow
def test_told_to_stop_all_save_and_one_process_goes_on(
  data_dir, alone, tmp_path
):
  """SIGTERM comes to one of two; the run is continued by one process."""
  workdir = tmp_path / "run"
  job = processes.launch("train", 2, *arguments(data_dir, workdir))
  test_launch.wait_for_step(workdir, 4, job[0])
  job[1].send_signal(signal.SIGTERM)
  statuses, _, errors = processes.finish(job)
  assert statuses == (143, 143), errors
  done = len(series(workdir, "train", "loss"))
  assert 4 <= done < 30
  status, _, err = runs.finish(
    runs.launch("train", *arguments(data_dir, workdir), devices=8)
  )
  assert status == 0, err
  assert f"Continuing from the checkpoint of step {done}" in err
  check_same_run(workdir, alone)


@pytest.mark.slow
def test_processes_that_were_started_differently_are_refused(
  data_dir, tmp_path
):
  workdir = tmp_path / "run"
  more = arguments(data_dir, workdir)
  address = f"127.0.0.1:{processes.free_port()}"
  job = [
    runs.launch(
      "train",
      *more,
      f"--config.train.batch_size={64 + 64 * process}",
      f"--coordinator_address={address}",
      "--num_processes=2",
      f"--process_id={process}",
    )
    for process in range(2)
  ]
  statuses, _, errors = processes.finish(job)
  assert 0 not in statuses
  last = errors[0].strip().splitlines()[-1]
  assert last.startswith("error: ") and "process 1 differs" in last, errors
  assert not workdir.exists()
