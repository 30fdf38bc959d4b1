"""launch/deploy/: each file by its own tool, and with flags that exist."""

import re
import shutil
import subprocess

import pytest
import yaml

from tests import runs

DEPLOY = runs.ROOT / "launch/deploy"
FILES = ("Containerfile", "kubernetes.yaml", "xlj.service")
SERVE = (runs.ROOT / "xlj/commands/serve.py").read_text()


@pytest.mark.parametrize("name", FILES)
def test_flags_and_paths_exist(name):
  text = (DEPLOY / name).read_text()
  for flag in re.findall(
    r"(?<=[\s\"])--(model|host|port|timeout|\w+_\w+)=", text
  ):
    assert f'"{flag}"' in SERVE, flag
  for path in re.findall(r"launch/[\w/.-]*\w", text):
    assert (runs.ROOT / path).exists(), path


def test_kubernetes_knows_all_that_the_manifest_says():
  validate = pytest.importorskip("kubernetes_validate")
  documents = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
  service, deployment = documents
  for document in (service, deployment):
    validate.validate(document, "1.31", strict=True)
  pod = deployment["spec"]["template"]
  (container,) = pod["spec"]["containers"]
  selector = deployment["spec"]["selector"]["matchLabels"]
  assert selector == pod["metadata"]["labels"] == service["spec"]["selector"]
  assert service["spec"]["ports"][0]["targetPort"] == "http"
  (port,) = container["ports"]
  assert f"--port={port['containerPort']}" in container["args"]
  paths = {
    kind: container[kind]["httpGet"]["path"]
    for kind in ("startupProbe", "readinessProbe", "livenessProbe")
  }
  assert set(paths.values()) == {"/ready", "/health"}
  # Whoever restarts pods has not to ask what is 503 while they stop.
  assert paths["livenessProbe"] == "/health"


@pytest.mark.skipif(
  not shutil.which("systemd-analyze"), reason="no systemd-analyze"
)
def test_systemd_knows_all_that_the_unit_says(tmp_path):
  unit = tmp_path / "xlj.service"
  text = (DEPLOY / unit.name).read_text()
  # It looks for the program.
  unit.write_text(re.sub(r"(?<=ExecStart=)\S+", "/bin/sh", text))
  done = subprocess.run(
    ["systemd-analyze", "verify", unit], capture_output=True, text=True
  )
  assert unit.name not in done.stderr, done.stderr
