"""Eight simulated CPU devices for every test; set before JAX is imported."""

import os
import shutil
import tempfile

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAG = "--xla_force_host_platform_device_count"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}=8"

# Most of the time goes into compiling, often the same thing: for another test,
# another process, or a run that goes on. Nothing stays after a session.
_CACHE = "JAX_COMPILATION_CACHE_DIR"
_OWN = _CACHE not in os.environ  # of this process, not one that started it
if _OWN:
  os.environ[_CACHE] = tempfile.mkdtemp(prefix="xlj_tests_")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
  """A small data set, which tests only read."""
  from tests import runs  # jax reads the variables above

  return runs.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def use_mesh(monkeypatch):
  """Lets runs build their mesh in a shape over the first devices only."""
  from tests import meshes
  from xlj import mesh as mesh_lib

  def use(shape):
    monkeypatch.setattr(
      mesh_lib, "make_mesh", lambda _=None: meshes.make(shape)
    )

  return use


@pytest.fixture
def optimized():
  """Compiles as users do, for what LLVM could change: single bits."""
  import jax

  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", before)


def pytest_configure():
  # A third of the time is LLVM's, for programs that run once. What is launched
  # has all that users have; so has whoever sets the variable to 0.
  os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


def pytest_unconfigure():
  if _OWN:
    shutil.rmtree(os.environ[_CACHE], ignore_errors=True)
