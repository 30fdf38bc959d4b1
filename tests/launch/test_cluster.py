"""launch/cluster/: each script by its own tool; Slurm and Open MPI for real."""

import os
from pathlib import Path
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

from tests import runs
from tests.launch import test_launch
from xlj.distributed import exit_status

CLUSTER = runs.ROOT / "launch/cluster"
SCRIPTS = ("slurm.sbatch", "tpu_pod.sh")
MANIFESTS = ("kubernetes_job.yaml", "jobset.yaml", "kubeflow.yaml")
TASKS = ("skypilot.yaml", "dstack.yaml")
BRING_UP = runs.ROOT / "tests/launch/slurm/bring_up.sh"
STEPS = 400
ARGUMENTS = (
  *test_launch.SMALL,
  f"--config.train.num_steps={STEPS}",
  "--config.checkpoint.every=50",
  "--config.eval.every=200",
  "--peer_timeout=10",
)


def needs(*tools):
  missing = [tool for tool in tools if not shutil.which(tool)]
  return pytest.mark.skipif(bool(missing), reason=f"no {', '.join(missing)}")


def call(*command, **kwargs):
  return subprocess.run(
    list(map(str, command)),
    cwd=runs.ROOT,
    text=True,
    capture_output=True,
    **kwargs,
  )


# --- scripts -----------------------------------------------------------------


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_parses_the_script(name):
  done = call("bash", "-n", CLUSTER / name)
  assert not done.returncode and not done.stderr


@needs("shellcheck")
@pytest.mark.parametrize("path", [*(CLUSTER / x for x in SCRIPTS), BRING_UP])
def test_shellcheck_has_nothing_to_say(path):
  done = call("shellcheck", path)
  assert not done.returncode, done.stdout


@pytest.mark.parametrize("name", [*SCRIPTS, *MANIFESTS, *TASKS])
def test_no_working_directory_is_a_bucket(name):
  """As launchers refuse it."""
  found = re.findall(r"--workdir=(\S+)", (CLUSTER / name).read_text())
  assert found and not any("://" in workdir for workdir in found)


FAKE_GCLOUD = """#!/bin/sh
echo "$@" | sed 's/ --command=.*//'
for word in "$@"; do
  case $word in --command=*) cd "$HOME" && sh -c "${word#--command=}" ;; esac
done
"""


def test_a_tpu_pod_runs_the_command_on_all_hosts(tmp_path):
  gcloud = tmp_path / "gcloud"
  gcloud.write_text(FAKE_GCLOUD)
  gcloud.chmod(0o755)
  home = tmp_path / "home of a host"
  (home / "xlj/xlj").mkdir(parents=True)
  (home / "xlj/xlj/__init__.py").touch()
  (home / "xlj/xlj/__main__.py").write_text("import sys; print(sys.argv[1:])")
  env = {
    **os.environ,
    "PATH": f"{tmp_path}:{os.environ['PATH']}",
    "HOME": str(home),
    "PYTHON": sys.executable,
    "TPU": "pod",
    "ZONE": "here",
  }
  arguments = ["--config=a b.py", "--workdir=/x/'y' $z"]
  done = call(CLUSTER / "tpu_pod.sh", *arguments, env=env)
  asked, ran = done.stdout.splitlines()
  assert asked == "compute tpus tpu-vm ssh pod --zone=here --worker=all"
  assert ran == str(["train", *arguments])
  done = call(CLUSTER / "tpu_pod.sh", env=env)
  assert done.returncode == 2 and "TPU=NAME" in done.stderr


# --- manifests ---------------------------------------------------------------


def documents(name):
  return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def job_of(document):
  """The Job in a manifest's document, also that inside of a JobSet."""
  spec = document["spec"]
  if document["kind"] == "TrainingRuntime":
    spec = spec["template"]["spec"]
  if "replicatedJobs" in spec:
    (template,) = spec["replicatedJobs"]
    meta = {"name": template["name"]}
    head = {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta}
    labels = template["template"].get("metadata", {})
    return {**head, **template["template"], "metadata": {**meta, **labels}}
  return document


def kubernetes_own(name):
  """The documents of a manifest, or their Jobs, that Kubernetes knows."""
  found = map(job_of, documents(name))
  return [document for document in found if document["kind"] != "TrainJob"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_knows_all_that_the_manifest_says(name):
  validate = pytest.importorskip("kubernetes_validate")
  for document in kubernetes_own(name):
    validate.validate(document, "1.31", strict=True)


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_cluster_would_take_the_manifest(name):
  command = ("kubectl", "create", "--dry-run=server", "-f", CLUSTER / name)
  if not shutil.which("kubectl") or call("kubectl", "version").returncode:
    pytest.skip("no Kubernetes cluster")
  done = call(*command)
  assert not done.returncode, done.stderr


@pytest.mark.parametrize("name", MANIFESTS[:2])
def test_the_processes_of_a_manifest_find_each_other(name):
  *services, outer = documents(name)
  job = job_of(outer)["spec"]
  pod = job["template"]["spec"]
  (container,) = pod["containers"]
  flags = dict(
    word.removeprefix("--").split("=", 1)
    for word in container["command"]
    if "=" in word
  )
  assert job["completionMode"] == "Indexed"
  assert job["completions"] == job["parallelism"] == int(flags["num_processes"])
  assert flags["process_id"] == "$(JOB_COMPLETION_INDEX)"
  host, port = flags["coordinator_address"].split(":")
  own = outer["metadata"]["name"]
  if outer["kind"] == "JobSet":
    (group,) = outer["spec"]["replicatedJobs"]
    assert group["replicas"] == 1
    assert host == f"{own}-{group['name']}-0-0.{own}"
    assert job["backoffLimit"] == 0  # the JobSet starts all pods again
  else:
    (service,) = services
    assert host == f"{own}-0.{pod['subdomain']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": own}
  assert 1024 < int(port) < 65536
  assert pod["restartPolicy"] == "Never"
  mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
  assert any(Path(flags["workdir"]).is_relative_to(path) for path in mounts)


# --- exit statuses -----------------------------------------------------------


def test_slurm_tells_exit_statuses_apart():
  text = (CLUSTER / "slurm.sbatch").read_text()
  assert f'  {exit_status.DONE}) echo "complete' in text
  assert f'  {exit_status.REFUSED}) echo "refused' in text
  compared = re.findall(r"status != (\d+)", text)
  assert set(map(int, compared)) == {exit_status.DONE, exit_status.STOPPED}


@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_tells_exit_statuses_apart(name):
  job = kubernetes_own(name)[-1]["spec"]
  said = {
    rule["action"]: rule["onExitCodes"]["values"]
    for rule in job["podFailurePolicy"]["rules"]
    if "onExitCodes" in rule
  }
  assert said.pop("FailJob") == [exit_status.REFUSED]
  assert said.pop("Ignore", [exit_status.STOPPED]) == [exit_status.STOPPED]
  assert not said


def test_the_page_says_the_exit_statuses():
  page = (runs.ROOT / "docs/devices_and_hosts.md").read_text()
  (line,) = re.findall(r"Exit statuses: ([^.]*)\.", page)
  numbers = [int(number) for number in re.findall(r"\d+", line)]
  assert numbers == [
    exit_status.DONE,
    exit_status.REFUSED,
    exit_status.LOST,
    exit_status.INTERRUPTED,
    exit_status.STOPPED,
  ]


# --- real clusters -----------------------------------------------------------


@pytest.fixture(scope="module")
def alone(data_dir, tmp_path_factory):
  """The losses of an undisturbed run of one process."""
  workdir = tmp_path_factory.mktemp("alone") / "run"
  status, _, err = runs.finish(
    runs.launch(
      "train",
      *test_launch.train_arguments(data_dir, workdir, *ARGUMENTS),
      devices=2,
    )
  )
  assert status == 0, err
  return runs.losses(workdir)


def environment(**more):
  flag = "--xla_force_host_platform_device_count=1"
  return {**os.environ, "PYTHONPATH": str(runs.ROOT), "XLA_FLAGS": flag, **more}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
  """The environment of users of a Slurm cluster."""
  missing = [x for x in ("slurmctld", "slurmd", "munged") if not which_admin(x)]
  if missing or os.geteuid():
    pytest.skip(f"needs root and {', '.join(missing) or 'nothing else'}")
  directory = tmp_path_factory.mktemp("slurm")
  path = f"{os.environ['PATH']}:/usr/sbin"
  env = environment(PATH=path, SLURM_CONF=str(directory / "slurm.conf"))
  done = call(BRING_UP, "up", directory, 2, env=env)
  try:
    if done.returncode:
      pytest.skip(f"Slurm does not start here: {done.stderr[-2000:]}")
    yield env
  finally:
    call(BRING_UP, "down", directory, env=env)


def which_admin(tool):
  return shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin")


class Job:
  """A job in Slurm's hands."""

  def __init__(self, env, directory, *args, options=()):
    self.log, self.logs = directory / "job.log", directory / "logs"
    self.env = {**env, "PYTHON": sys.executable, "LOGS": str(self.logs)}
    done = self.call(
      *("sbatch", "--parsable", "--nodes=1", "--ntasks-per-node=2"),
      *("--gpus-per-node=0", f"--output={self.log}", *options),
      *(CLUSTER / "slurm.sbatch", *args),
    )
    assert not done.returncode, done.stderr
    self.number = done.stdout.strip()

  def call(self, *command):
    return call(*command, env=self.env)

  def log_text(self):
    return self.log.read_text() if self.log.exists() else ""

  def state(self):
    shown = self.call("scontrol", "show", "job", self.number).stdout
    words = dict(word.split("=", 1) for word in shown.split() if "=" in word)
    return words["JobState"]

  def wait_until(self, condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
      if time.monotonic() > deadline:
        self.call("scancel", self.number)
        pytest.fail(f"{self.log_text()}\n{self.what_processes_said()}")
      time.sleep(0.1)

  def wait(self, seconds):
    """Waits for its end; returns its state and log."""
    under_way = ("PENDING", "RUNNING", "COMPLETING")
    self.wait_until(lambda: self.state() not in under_way, seconds)
    return self.state(), self.log_text()

  def what_processes_said(self):
    return "\n".join(path.read_text() for path in self.logs.iterdir())

  def process(self, number):
    """The process id of one of its processes."""
    wanted = {f"SLURM_JOB_ID={self.number}", f"SLURM_PROCID={number}"}
    for path in Path("/proc").glob("[0-9]*"):
      try:
        variables = (path / "environ").read_text().split("\0")
        if wanted <= set(variables) and "\0xlj\0train\0" in (
          (path / "cmdline").read_text()
        ):
          return int(path.name)
      except (OSError, UnicodeDecodeError):
        continue
    pytest.fail(f"no process {number}")

  def wait_for_step(self, workdir, step):
    path = workdir / "metrics.jsonl"
    self.wait_until(
      lambda: path.exists() and path.read_text().count('"train"') >= step, 120
    )


def test_slurm_takes_the_script(slurm):
  done = call(
    *("sbatch", "--test-only", "--nodes=1", "--ntasks-per-node=2"),
    *("--gpus-per-node=0", CLUSTER / "slurm.sbatch"),
    env=slurm,
  )
  assert not done.returncode, done.stderr


@pytest.mark.slow
def test_slurm_queues_a_stopped_and_a_killed_run_again(
  slurm, data_dir, alone, tmp_path
):
  workdir = tmp_path / "run"
  args = test_launch.train_arguments(data_dir, workdir, *ARGUMENTS)
  job = Job(slurm, tmp_path, *args)
  job.wait_for_step(workdir, 60)
  job.call("scancel", "--signal=TERM", job.number)
  job.wait_for_step(workdir, 220)
  os.kill(job.process(1), signal.SIGKILL)
  state, log = job.wait(240)
  said = job.what_processes_said()
  assert state == "COMPLETED", (log, said)
  assert log.count("exit status 143, queued again") == 1, log
  assert log.count("exit status 137, queued again") == 1, log
  assert "error: process 1 (" in log  # who was lost, as process 0 said
  assert log.count("complete,") == 1
  assert said.count("Continuing from the checkpoint of step") == 2
  np.testing.assert_allclose(runs.losses(workdir), alone, rtol=1e-5)


@pytest.mark.slow
def test_slurm_queues_a_run_again_at_each_time_limit(slurm, data_dir, tmp_path):
  workdir = tmp_path / "run"
  more = (
    *ARGUMENTS,
    "--config.train.num_steps=1000000",
    "--config.checkpoint.every=1000000",  # so that it saves when told to
    "--config.eval.every=1000000",
  )
  args = test_launch.train_arguments(data_dir, workdir, *more)
  env = {**slurm, "SECONDS_TO_SAVE": "30"}
  job = Job(env, tmp_path, *args, options=("--time=1",))
  job.wait_until(
    lambda: job.log_text().count("exit status 143, queued again") == 2, 240
  )
  job.call("scancel", job.number)
  state, _ = job.wait(60)
  assert state == "CANCELLED"
  assert "TIME LIMIT" not in job.log_text()
  said = job.what_processes_said()
  assert said.count("Continuing from the checkpoint of step") >= 1
  steps = [row["step"] for row in runs.records(workdir, "train")]
  assert steps == list(range(1, len(steps) + 1))


@pytest.mark.slow
def test_slurm_does_not_queue_again_what_was_refused(slurm, tmp_path):
  args = test_launch.train_arguments("/nowhere", tmp_path / "run", *ARGUMENTS)
  state, log = Job(slurm, tmp_path, *args).wait(120)
  assert state == "FAILED" and "refused," in log
  assert "/nowhere" in log


@pytest.mark.slow
@needs("mpirun")
def test_open_mpi_trains_as_one_process_does(data_dir, alone, tmp_path):
  workdir = tmp_path / "run"
  root = ("--allow-run-as-root",) if os.geteuid() == 0 else ()
  done = call(
    *("mpirun", *root, "--oversubscribe", "-n", 2),
    *(sys.executable, "launch/train.py"),
    *test_launch.train_arguments(data_dir, workdir, *ARGUMENTS),
    env=environment(),
    timeout=240,
  )
  assert not done.returncode, done.stderr
  assert "All 2 processes are here" in done.stderr
  np.testing.assert_allclose(runs.losses(workdir), alone, rtol=1e-5)
