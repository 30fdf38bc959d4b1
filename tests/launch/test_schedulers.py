"""launch/cluster/ for Kubeflow Trainer, SkyPilot and dstack.

Their schemas are shortened to what the files use, and what they may not.
"""

import os
import subprocess
import sys

import pytest
import yaml

from tests import processes
from tests import runs
from tests.launch import test_cluster
from xlj.distributed import exit_status

CLUSTER = test_cluster.CLUSTER


def only(required=(), **properties):
  return {
    "type": "object",
    "properties": properties,
    "required": list(required),
    "additionalProperties": False,
  }


def one_of(*values):
  return {"enum": list(values)}


def many(items):
  return {"type": "array", "items": items, "minItems": 1}


TEXT, COUNT, ANY = {"type": "string"}, {"type": "integer", "minimum": 0}, {}
ACTIONS = ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
JOB_SET = only(  # https://jobset.sigs.k8s.io, v1alpha2
  failurePolicy=only(
    maxRestarts=COUNT,
    restartStrategy=one_of("Recreate", "BlockingRecreate"),
    rules=many(
      only(
        ("name", "action"),
        name=TEXT,
        action=one_of(*ACTIONS),
        onJobFailureReasons=many(
          one_of(
            *("BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy"),
            *("FailedIndexes", "MaxFailedIndexesExceeded"),
          )
        ),
        targetReplicatedJobs=many(TEXT),
      )
    ),
  ),
  network=only(
    enableDNSHostnames={"type": "boolean"},
    publishNotReadyAddresses={"type": "boolean"},
    subdomain=TEXT,
  ),
  replicatedJobs=many(
    only(("name", "template"), name=TEXT, replicas=COUNT, template=ANY)
  ),
  suspend={"type": "boolean"},
  ttlSecondsAfterFinished=COUNT,
)
SCHEMAS = {
  # trainer.kubeflow.org/v1alpha1, of Kubeflow Trainer 2.2 and 2.3
  "TrainingRuntime": only(
    ("template",),
    mlPolicy=only(numNodes=COUNT, jax=only()),
    template=only(metadata=ANY, spec=JOB_SET),
  ),
  "TrainJob": only(
    ("runtimeRef",),
    runtimeRef=only(
      ("name",),
      name=TEXT,
      kind=one_of("TrainingRuntime", "ClusterTrainingRuntime"),
      apiGroup=TEXT,
    ),
    trainer=only(
      image=TEXT,
      command=many(TEXT),
      args=many(TEXT),
      env=many(only(("name",), name=TEXT, value=TEXT, valueFrom=ANY)),
      numNodes=COUNT,
      numProcPerNode=COUNT,
      resourcesPerNode=only(limits=ANY, requests=ANY),
    ),
    suspend={"type": "boolean"},
  ),
  "JobSet": JOB_SET,
  "skypilot.yaml": only(  # sky/utils/schemas.py of 0.14
    name=TEXT,
    num_nodes=COUNT,
    resources=only(
      infra=TEXT,
      accelerators=TEXT,
      use_spot={"type": "boolean"},
      job_recovery=only(
        strategy=TEXT,
        max_restarts_on_errors=COUNT,
        recover_on_exit_codes=many({**COUNT, "maximum": 255}),
      ),
    ),
    workdir=TEXT,
    envs={"type": "object", "additionalProperties": {"type": "string"}},
    file_mounts={"type": "object"},
    volumes={"type": "object", "additionalProperties": {"type": "string"}},
    setup=TEXT,
    run=TEXT,
  ),
  "dstack.yaml": only(  # TaskConfiguration of 0.22
    ("type",),
    type=one_of("task"),
    name={"type": "string", "pattern": "^[a-z][a-z0-9-]{1,40}$"},
    nodes={**COUNT, "minimum": 1},
    image=TEXT,
    python=TEXT,
    working_dir={"type": "string", "pattern": "^[/~]"},
    env=ANY,
    commands=many(TEXT),
    resources=only(gpu=TEXT, shm_size=TEXT, cpu=ANY, memory=ANY, disk=ANY),
    volumes=many({"type": "string", "pattern": "^[^:]+:/[^:]*$"}),
    retry=only(
      on_events=many(one_of("no-capacity", "interruption", "error")),
      duration=TEXT,
    ),
  ),
}


def documents(name):
  return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def parts():
  """What there is to check: the schema's name, and what it is for."""
  for name in ("kubeflow.yaml", "jobset.yaml"):
    for document in documents(name):
      yield document["kind"], document["spec"]
  for name in ("skypilot.yaml", "dstack.yaml"):
    yield name, documents(name)[0]


@pytest.mark.parametrize("name,part", list(parts()))
def test_the_schema_knows_all_that_the_file_says(name, part):
  jsonschema = pytest.importorskip("jsonschema")
  jsonschema.validate(part, SCHEMAS[name])
  with pytest.raises(jsonschema.ValidationError):
    jsonschema.validate({**part, "nodez": 2}, SCHEMAS[name])


def test_kubeflow_finds_what_its_names_name():
  """By these names it knows the pods and the container of the processes."""
  runtime, job = documents("kubeflow.yaml")
  reference = job["spec"]["runtimeRef"]
  assert reference["kind"] == runtime["kind"]
  assert reference["name"] == runtime["metadata"]["name"]
  assert runtime["spec"]["mlPolicy"]["jax"] == {}
  (group,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
  step = group["template"]["metadata"]["labels"]
  assert step == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
  pod = group["template"]["spec"]["template"]["spec"]
  (container,) = pod["containers"]
  assert group["name"] == container["name"] == "node"
  log = (CLUSTER / "kubeflow.yaml").read_text()
  assert f"job-name={job['metadata']['name']}-{group['name']}-0," in log
  mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
  (workdir,) = (
    word.partition("=")[2]
    for word in job["spec"]["trainer"]["command"]
    if word.startswith("--workdir=")
  )
  assert workdir.startswith(tuple(f"{mount}/" for mount in mounts))


def test_skypilot_starts_again_what_may_end_better():
  recovery = documents("skypilot.yaml")[0]["resources"]["job_recovery"]
  codes = [exit_status.LOST, exit_status.STOPPED]
  assert recovery["recover_on_exit_codes"] == codes


# --- real processes ----------------------------------------------------------

LAUNCHER = """
import sys
from xlj.distributed import exchange
from xlj.distributed import start
start.initialize(initialization_timeout=60)
found = exchange.gather("who", str(exchange.process_id()))
print("found", *found, exchange.num_processes(), flush=True)
assert sys.argv[1] == "train" and "--workdir=/shared/runs/xlj" in sys.argv
"""


def of_kubeflow(rank):
  """The container's command and what the JAX runtime adds to it."""
  _, job = documents("kubeflow.yaml")
  return job["spec"]["trainer"]["command"], {
    "JAX_COORDINATOR_ADDRESS": "127.0.0.1:{port}",
    "JAX_NUM_PROCESSES": str(job["spec"]["trainer"]["numNodes"]),
    "JAX_PROCESS_ID": str(rank),
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    "JOB_COMPLETION_INDEX": str(rank),
  }


def of_skypilot(rank):
  (task,) = documents("skypilot.yaml")
  return ["bash", "-c", task["run"]], {
    "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.2",
    "SKYPILOT_NUM_NODES": str(task["num_nodes"]),
    "SKYPILOT_NODE_RANK": str(rank),
    "JAX_COORDINATOR_PORT": "{port}",
  }


def of_dstack(rank):
  (task,) = documents("dstack.yaml")
  commands = " && ".join(command.strip() for command in task["commands"])
  return ["sh", "-i", "-c", commands], {
    "DSTACK_MASTER_NODE_IP": "127.0.0.1",
    "DSTACK_NODES_NUM": str(task["nodes"]),
    "DSTACK_NODE_RANK": str(rank),
    "JAX_COORDINATOR_PORT": "{port}",
  }


def host(directory, launcher):
  """Where the commands run, and find another `xlj`."""
  for folder in (directory / "bin", directory / "xlj-venv/bin"):
    folder.mkdir(parents=True)
    (folder / "xlj").write_text(f"#!{sys.executable}\n{launcher}")
    (folder / "xlj").chmod(0o755)
  hidden = ("SLURM_", "OMPI_", "JAX_C", "JAX_N", "JAX_PROCESS")
  env = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
  path = f"{directory / 'bin'}:{env['PATH']}"
  return {
    **env,
    "HOME": str(directory),
    "PATH": path,
    "PYTHONPATH": str(runs.ROOT),
  }


def start(command, directory, env):
  return subprocess.Popen(
    command,
    cwd=directory,
    env=env,
    text=True,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    start_new_session=True,
  )


@pytest.mark.slow
@pytest.mark.parametrize("of", [of_kubeflow, of_skypilot, of_dstack])
def test_two_nodes_find_each_other(of, tmp_path):
  env, port = host(tmp_path, LAUNCHER), str(processes.free_port())
  nodes = []
  for rank in (0, 1):
    command, told = of(rank)
    told = {name: value.format(port=port) for name, value in told.items()}
    nodes.append(start(command, tmp_path, {**env, **told}))
  for node in nodes:
    out, err = node.communicate(timeout=120)
    assert node.returncode == 0, err
    assert "found 0 1 2" in out


@pytest.mark.parametrize(
  "status,ends", [(exit_status.REFUSED, 0), (exit_status.LOST, 75), (0, 0)]
)
def test_dstack_does_not_try_again_what_was_refused(status, ends, tmp_path):
  env = host(tmp_path, f"raise SystemExit({status})")
  node = start(of_dstack(0)[0], tmp_path, env)
  node.communicate(timeout=60)
  assert node.returncode == ends


@pytest.mark.parametrize("of", [of_skypilot, of_dstack])
def test_a_signal_reaches_python(of, tmp_path):
  """dstack tells the shell to stop by SIGINT, and waits for it."""
  env = host(
    tmp_path,
    "import signal, sys, time\n"
    "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.2), sys.exit(143)))"
    "\nprint('ready', flush=True)\ntime.sleep(60)",
  )
  node = start(of(0)[0], tmp_path, env)
  assert node.stdout.readline() == "ready\n"
  node.send_signal(2 if of is of_dstack else 15)
  node.communicate(timeout=60)
  assert node.returncode == exit_status.STOPPED
