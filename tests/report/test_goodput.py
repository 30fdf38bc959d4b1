"""Where the time of a run goes, told by a clock that tests set."""

import json

import pytest

from xlj.report import goodput
from xlj.report import recorded


class Time:
  """Seconds that pass only when told to."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


class Loss:
  """Stands for an array on a device."""

  def __init__(self, ready):
    self.is_ready = lambda: ready


def seconds(**given):
  return {**dict.fromkeys(goodput.PHASES, 0.0), **given}


def written(clock, workdir):
  clock.write(workdir, at_once=True)
  return recorded.read_json(workdir / goodput.GOODPUT_FILE)


def step(clock, time, number, *, wait, ready, compiling=0.0, work=0.0):
  """A step of a loop: its wait for input, and what the host does then."""
  clock.enter("input")
  time.now += wait
  clock.input_came()
  clock.enter("compilation" if compiling else "steps")
  time.now += compiling
  clock.gave(number, Loss(ready))
  time.now += work


def test_phases_add_up(tmp_path):
  time = Time()
  clock = goodput.Clock({}, time)
  time.now += 5
  step(clock, time, 1, wait=1, ready=True, compiling=4, work=10)
  clock.enter("evaluation")
  time.now += 3
  clock.enter("checkpoints")
  time.now += 2
  found = written(clock, tmp_path)
  assert found == {
    "step": 1,
    "seconds": seconds(
      **dict(start=5, input=1, compilation=4, steps=10),
      **dict(evaluation=3, checkpoints=2),
    ),
  }
  assert clock.share() == pytest.approx(10 / 25)


def test_a_wait_while_devices_work_is_none(tmp_path):
  """The host runs ahead, and blocks when it looks at the losses."""
  time = Time()
  clock = goodput.Clock({}, time)
  for number in range(1, 6):
    step(clock, time, number, wait=3, ready=number == 5)
  time.now += 35
  clock.caught_up()
  found = written(clock, tmp_path)["seconds"]
  assert (found["input"], found["steps"]) == (3, 47)  # that of the first one
  # It cannot be told from this what one step takes.
  for number in (6, 7):
    step(clock, time, number, wait=5, ready=True)
  assert written(clock, tmp_path)["seconds"]["input"] == 13


def test_a_wait_counts_from_when_devices_have_nothing_to_do(tmp_path):
  """Steps of 4 seconds, input every 5: devices wait for 1 of 5."""
  time = Time()
  clock = goodput.Clock({}, time)
  step(clock, time, 1, wait=0, ready=True, work=4)
  clock.caught_up()
  for number in range(2, 7):
    step(clock, time, number, wait=5, ready=True)
  found = written(clock, tmp_path)["seconds"]
  assert (found["input"], found["steps"]) == (5 + 4 * 1, 4 + 4 * 4)


def test_input_after_a_validation_is_waited_for(tmp_path):
  time = Time()
  clock = goodput.Clock({}, time)
  step(clock, time, 1, wait=0, ready=True, work=4)
  clock.caught_up()
  clock.enter("evaluation")
  time.now += 1
  clock.enter("input")
  time.now += 2
  clock.input_came()
  assert written(clock, tmp_path)["seconds"]["input"] == 2


def test_a_run_that_goes_on_adds_up_and_knows_what_is_lost(tmp_path):
  time = Time()
  clock = goodput.Clock({}, time)
  time.now += 10
  clock.enter("steps")
  time.now += 200
  clock.gave(100, Loss(True))
  record = written(clock, tmp_path)  # and is killed; step 75 is saved
  time.now += 10_000  # nothing runs
  clock = goodput.Clock(record, time)
  time.now += 10
  clock.go_back(75)
  step(clock, time, 76, wait=0, ready=True, work=2)
  found = written(clock, tmp_path)
  assert found == {
    "step": 76,
    "seconds": seconds(start=20, steps=150 + 2, lost=50),
  }
  assert clock.share() == pytest.approx(152 / 222)
  clock.go_back(75)  # without a new start: a batch that cannot be used
  assert written(clock, tmp_path)["seconds"]["lost"] == pytest.approx(52)


def test_nothing_is_lost_where_all_was_saved():
  before = seconds(steps=30.0, start=3.0)
  assert goodput.after_restart(before, 40, 40) == before
  assert goodput.after_restart(before, 0, 40) == before  # an older run's
  assert goodput.after_restart(before, 40, 0)["lost"] == 30.0


@pytest.mark.parametrize(
  "record",
  [
    {},
    {"step": "x", "seconds": 3},
    {"step": None, "seconds": {"steps": "1", "input": -2, "other": 5}},
    {"step": True, "seconds": {"steps": float("nan"), "start": [1]}},
  ],
)
def test_a_damaged_record_says_nothing(record, tmp_path):
  assert goodput.seconds_of(record) == seconds()
  assert goodput.share(goodput.seconds_of(record)) == 0
  clock = goodput.Clock(record, Time())
  clock.go_back(7)
  assert written(clock, tmp_path) == {"step": 7, "seconds": seconds()}
  (tmp_path / goodput.GOODPUT_FILE).write_text(json.dumps(record))
  assert recorded.read(tmp_path).seconds == {}


def test_it_is_written_now_and_then_and_with_each_checkpoint(tmp_path):
  time = Time()
  clock = goodput.Clock({}, time)
  path = tmp_path / goodput.GOODPUT_FILE
  told = []
  for passed, at_once in ((1, False), (9, False), (1, False), (0, True)):
    time.now += passed
    clock.write(tmp_path, at_once)
    told.append(json.loads(path.read_text())["seconds"]["start"])
  assert told == [1, 1, 11, 11]


def test_a_run_does_not_end_for_want_of_it(tmp_path):
  goodput.Clock({}, Time()).write(tmp_path / "missing", at_once=True)
