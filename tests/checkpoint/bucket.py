"""Saves and restores on a bucket of an emulator of Google Cloud Storage.

Run by test_bucket.py in a process of its own, with the variables that lead
libraries to the emulator instead of the network.
"""

import os
import sys

from etils import epath
from gcp_storage_emulator import server as server_lib

from tests import meshes
from tests.checkpoint import states
from xlj.checkpoint import checkpointer
from xlj.checkpoint import probe

DIRECTORY = "gs://bucket/some/run"


def main(port):
  server = server_lib.create_server(
    "127.0.0.1", port, in_memory=True, default_bucket="bucket"
  )
  server.start()
  try:
    probe.probe(DIRECTORY)
    # What an interrupted save leaves: it has no commit file.
    epath.Path(f"{DIRECTORY}/9/model/rows").write_text("half")
    with meshes.mesh((2, 4)) as mesh:
      with checkpointer.Checkpointer(DIRECTORY, timeout=30) as keeper:
        assert keeper.latest_step() is None
        states.save_steps(keeper, mesh, [10.0, 30.0, 20.0, 5.0])
      with checkpointer.Checkpointer(DIRECTORY, read_only=True) as keeper:
        step, trees = states.restore(keeper, mesh)
        assert (step, keeper.best_step()) == (4, 2)
        states.assert_same_bits(trees, states.make_trees(4))
    left = {path.name for path in epath.Path(DIRECTORY).iterdir()}
    assert left == {"2", "3", "4"}, left
    print("good")
  finally:
    sys.stdout.flush()
    server.stop()


if __name__ == "__main__":
  main(int(sys.argv[1]))
  os._exit(0)  # threads of the emulator would stay
