"""Plans against formulas, of devices that are not there."""

import json

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import billion
from tests import runs
from xlj import config as config_lib
from xlj import mesh as mesh_lib
from xlj import sharding
from xlj.losses import bce
from xlj.losses import softmax
from xlj.losses import squared_hinge
from xlj.model import model as model_lib
from xlj.ops import chunks
from xlj.ops import platform
from xlj.planning import accelerators
from xlj.planning import collectives
from xlj.planning import needs
from xlj.planning import plan
from xlj.planning import stated
from xlj.planning import table
from xlj.planning import work

P = jax.P
CONFIG = f"--config={runs.ROOT}/configs/billion.py"
FEATURES, WIDTH, POSITIVES = 65_536, 32, 4  # of configs/billion.py


def run_launcher(tmp_path, *args):
  """The launcher as a process; returns its JSON and what it printed."""
  path = tmp_path / "plan.json"
  status, out, err = runs.finish(
    runs.launch("plan", *args, f"--json={path}", devices=3)
  )
  assert status == 0, err
  return json.loads(path.read_text()), out


@pytest.mark.slow
def test_the_launcher_agrees_with_the_formulas(tmp_path):
  found, out = run_launcher(
    tmp_path,
    f"{CONFIG}:num_labels=100000,dim=32,batch_size=256",
    "--devices=8",
    "--mesh=2,4",
    "--accelerator=H100",
  )
  rows = 196 * 512  # the next multiple of head.blocks
  local, dim, batch = rows // 8, 32, 256
  encoder = 4 * FEATURES * dim
  assert found["num_labels"] == 100_000
  assert found["devices"] == 8 and found["mesh"] == [2, 4]
  # bfloat16 rows; SGD's state is a few counters.
  assert found["weight_bytes"] == local * 2 * dim + encoder
  assert 0 <= found["optimizer_bytes"] - 2 * encoder < 64
  assert found["batch_bytes"] == 4 * batch // 8 * (2 * WIDTH + POSITIVES + 2)
  assert found["buffer_bytes"] == 8 * local + 4 * FEATURES + 4
  # Logits twice, dX and dW; then the bag forward, and its table's gradient.
  head, bag = 8 * batch * dim * local, 4 * batch * WIDTH * dim / 8
  assert found["flops"] == pytest.approx(head + bag)
  assert 0 < found["temp_bytes"] < 2**30
  sent = {
    (c["kind"], c["shape"]): c["sent_bytes"] for c in found["collectives"]
  }
  assert sent["all-gather", f"f32[{batch},{dim}]"] == 4 * batch * dim * 7 // 8
  assert (
    sent["reduce-scatter", f"f32[{batch // 8},{dim}]"]
    == 4 * batch * dim * 7 // 8
  )
  assert found["collective_bytes"] >= encoder  # its gradient is all-reduced
  assert found["fits"] is True
  assert found["largest_num_labels"] > 100_000
  assert "100,000 labels x 32, bfloat16 rows, softmax, sgd" in out
  assert "8 x h100" in out and "mesh 2 x 4" in out
  assert out.strip().splitlines()[-1].startswith("FITS: ")
  for name in ("weights", "optimizer state", "temporaries", "sent to others"):
    assert any(line.startswith(f"{name}  ") for line in out.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 64])
def test_a_billion_labels_are_planned_without_allocating_any(devices, tmp_path):
  found, out = run_launcher(tmp_path, CONFIG, f"--devices={devices}")
  assert found["num_labels"] == 10**9
  assert found["weight_bytes"] == pytest.approx(10**9 * 128 / devices, rel=0.01)
  assert found["temp_bytes"] < 2**30  # a chunk
  assert found["fits"] is True
  *_, last = out.strip().splitlines()
  assert last.startswith("FITS: ")
  # The one device is nearly full.
  assert ("XLA_PYTHON_CLIENT_MEM_FRACTION=0.97" in last) == (devices == 1)


@pytest.mark.slow
def test_what_does_not_fit_gets_the_most_that_does(tmp_path):
  config = billion.get_config("optimizer=adam,dtype=float32,blocks=8")
  found = plan.make(config, mesh_lib.make_mesh(), "v5e")
  assert not found.fits
  assert "DOES NOT FIT: " in str(found)
  # Rows, two moments, and the buffers: 1 / 8 of them.
  state = 10**9 * (3 * 4 * 64 + 8) / 8
  assert found.needs.total_bytes == pytest.approx(state, rel=0.01)
  config.data.num_labels = found.largest_num_labels
  again = plan.make(config, mesh_lib.make_mesh(), "v5e")
  assert again.fits
  assert again.needs.total_bytes > 0.999 * again.usable_bytes
  assert again.largest_num_labels == found.largest_num_labels


def test_nothing_fits():
  config = billion.get_config("num_labels=1000,dim=65536")
  found = plan.make(config, mesh_lib.make_mesh(), "v5e")
  assert not found.fits and found.largest_num_labels == 0


@pytest.mark.parametrize(
  "dtype,row_bytes", [("float32", 256), ("bfloat16", 128), ("float8", 65)]
)
def test_bytes_of_a_row(dtype, row_bytes):
  config = stated.resolve(billion.get_config(f"dtype={dtype}"))
  model = model_lib.Model(config)
  with jax.set_mesh(mesh_lib.make_mesh((8, 1))):
    head = model.abstract().model["head"]
  found = needs.device_bytes(head)
  assert found == row_bytes * 10**9 // 8


@pytest.mark.parametrize(
  "kept,products", [("", 4), ("float16", 3)], ids=["again", "kept"]
)
def test_kept_logits_save_a_product(kept, products):
  config = billion.get_config("num_labels=4096,batch_size=64,blocks=8")
  config.head.keep_logits = kept
  config = stated.resolve(config)
  parts = dict.fromkeys(("rows", "head", "encoder", "encoder_optimizer"), 0)
  found = work.of_step(config, model_lib.Model(config), parts, 8, 0)
  assert found.head_flops == products * 2 * 64 * 64 * 4096 / 8


def test_work_follows_the_loss():
  assert work.has_statistics(softmax.Softmax())
  assert not work.has_statistics(bce.BinaryCrossEntropy())
  assert work.exponentials(softmax.Softmax()) == 2  # one in each pass
  # An exponential that softplus and sigmoid share, and a logarithm.
  assert work.exponentials(bce.BinaryCrossEntropy()) == 2
  assert work.exponentials(squared_hinge.SquaredHinge()) == 0


def test_walls_of_an_h200():
  """peers: 1e9 x 64, batch 1024, exact softmax: 0.53 s at the peak."""
  count = 1024e9
  job = accelerators.Work(
    head_flops=8 * 64 * count,
    encoder_flops=0,
    narrow_head=True,
    exponentials=2 * count,
    state_bytes=3 * 128e9,
    logit_bytes=0,
    sent_bytes=450e6,
  )
  h200 = accelerators.ACCELERATORS["h200"]
  found = accelerators.seconds(job, h200, 8)
  assert found["products"] == pytest.approx(0.53, rel=0.01)
  assert found["exponentials"] == pytest.approx(0.53, rel=0.01)
  assert found["memory"] == pytest.approx(0.08)
  assert found["collectives"] == pytest.approx(1e-3)
  # The network between nodes is slower than their links.
  assert accelerators.seconds(job, h200, 16)["collectives"] == pytest.approx(
    9e-3
  )
  assert accelerators.key_of("TPU v6e") == "v6e"
  v6e = accelerators.seconds(job, accelerators.ACCELERATORS["v6e"], 8)
  assert v6e["exponentials"] is None


def test_collectives_in_loops_count_as_often_as_those_run():
  mesh = mesh_lib.make_mesh((2, 4))

  @jax.shard_map(in_specs=P(sharding.AXES), out_specs=P(sharding.AXES))
  def run(x):  # [4, 6] of [32, 6]
    def body(_, x):
      whole = lax.all_gather(x, "label", tiled=True)  # [16, 6]
      return x + lax.psum_scatter(whole, "label", tiled=True)

    x = lax.fori_loop(0, 5, body, x)
    return x * lax.psum(x.sum(), sharding.AXES)

  with jax.set_mesh(mesh):
    where = jax.NamedSharding(mesh, P(sharding.AXES))
    x = jax.ShapeDtypeStruct((32, 6), jnp.float32, sharding=where)
    text = jax.jit(run).lower(x).compile().as_text()
  found = {c.kind: c for c in collectives.find(text, 8)}
  assert len(found) == 3
  gather = found["all-gather"]
  assert (gather.group, gather.count) == (4, 5)
  assert gather.sent_bytes == 5 * 3 * 4 * 6 * 4
  scatter = found["reduce-scatter"]
  assert (scatter.group, scatter.count) == (4, 5)
  assert scatter.sent_bytes == 5 * 3 * 4 * 6 * 4
  total = found["all-reduce"]
  assert (total.group, total.count) == (8, 1)
  assert total.sent_bytes == 2 * 4 * 7 // 8


LINES = {
  "%a = bf16[64,8]{1,0} all-gather(%x), replica_groups=[2,4]<=[8]": 768,
  "%a = (f32[4]{0}, s32[4]{0}) all-to-all(%x, %y), replica_groups={}": 28,
  "%a = pred[16]{0} collective-permute(%x), source_target_pairs={{0,1}}": 16,
  "%a = f32[9]{0} all-reduce(%x), replica_groups={{0},{1}}": 0,
  "%a = f32[8] all-gather(%x), replica_groups=mesh['a'=2,'b'=4] {'b'}": 24,
  "%a = f32[8] all-gather(%x), replica_groups=mesh['a'=8] {'a':(1)2}": 16,
}


@pytest.mark.parametrize("line", LINES)
def test_bytes_of_a_line(line):
  text = "HloModule m\n\nENTRY %main (x: f32[]) -> f32[] {\n  " + line + "\n}\n"
  assert sum(c.sent_bytes for c in collectives.find(text, 8)) == LINES[line]


def test_text_that_is_not_understood_is_refused():
  start = "%a = f32[9]{0} all-reduce-start(%x), replica_groups={{0,1}}"
  entry = "ENTRY %main (x: f32[]) -> f32[] {\n  "
  with pytest.raises(collectives.UnknownTextError, match="asynchronous"):
    collectives.find(f"{entry}{start}\n}}\n", 2)
  groups = start.replace("-start", "").replace("{{0,1}}", "V3")
  with pytest.raises(collectives.UnknownTextError, match="replica groups"):
    collectives.find(f"{entry}{groups}\n}}\n", 2)
  with pytest.raises(collectives.UnknownTextError, match="entry"):
    collectives.find("", 2)
  loop = (
    "%body (x: f32[]) -> f32[] {\n"
    f"  {start.replace('-start', '')}\n}}\n\n"
    f"{entry}%w = f32[] while(%x), condition=%c, body=%body\n}}\n"
  )
  with pytest.raises(collectives.UnknownTextError, match="unknown length"):
    collectives.find(loop, 2)


def test_chunks_are_those_of_accelerators():
  with platform.tracing_for("tpu"):
    assert chunks.default_memory() == stated.CHUNK_BYTES


def test_units():
  assert table.bytes_text(0) == "0 B"
  assert table.bytes_text(1023) == "1023 B"
  assert table.bytes_text(128e9) == "119.2 GiB"
  assert table.count_text(65.54e12, "flop") == "65.5 Tflop"
  assert table.seconds_text(0.0663) == "66.3 ms"
  assert table.seconds_text(None) == "unknown"


REFUSALS = {
  "mesh and devices differ": (
    (CONFIG, "--devices=8", "--mesh=3,2"),
    "mesh.shape (3, 2) asks for 6 devices, but there are 8",
  ),
  "mesh of words": ((CONFIG, "--mesh=two,four"), "--mesh=two,four"),
  "mesh of one axis": ((CONFIG, "--mesh=8"), "--mesh=8 is not two"),
  "no accelerator": (
    (CONFIG, "--accelerator=tpu-v1"),
    "there is no accelerator 'tpu-v1' in the table; use one of a100, h100",
  ),
  "labels beyond int32": (
    (f"{CONFIG}:num_labels=3_000_000_000",),
    "data.num_labels is 3,000,000,000; label ids are int32",
  ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_the_launcher_refuses_with_one_clear_last_line(case):
  arguments, message = REFUSALS[case]
  status, _, err = runs.launch_to_end("plan", *arguments)
  last = err.strip().splitlines()[-1]
  assert status == 2
  assert last.startswith("error: ") and message in last, err


def test_other_heads_are_not_planned():
  config = billion.get_config()
  config.head.type = "mhc"
  with pytest.raises(config_lib.ConfigError, match="the head 'mhc' .* plans"):
    plan.make(config, mesh_lib.make_mesh())


def test_what_fills_up_blocks_and_batches_counts():
  arg = "num_labels=1200,dim=32,blocks=12,batch_size=100"
  needs = plan.make(billion.get_config(arg), mesh_lib.make_mesh()).needs
  rows, examples = 2 * 100, 104 // 8  # of a device, of 16 blocks
  assert needs.weight_bytes == rows * 2 * 32 + 4 * FEATURES * 32
  numbers = 2 * WIDTH + POSITIVES + 2
  assert needs.batch_bytes == 4 * examples * numbers


def test_missing_facts_are_named():
  config = config_lib.base()
  for name in ("num_rows", "num_features", "num_labels"):
    message = rf"--config.data.{name}=NUMBER"
    with pytest.raises(config_lib.ConfigError, match=message):
      stated.facts(config)
    config.data[name] = 5000
  with pytest.raises(config_lib.ConfigError, match="data.features_per_row"):
    stated.facts(config)
  config.data.features_per_row = 20.5
  resolved = stated.resolve(config)
  assert resolved.data.max_features == 24
  assert resolved.family == "linear"
  assert resolved.encoder.input_scale is None  # there is no encoder
  config.family = "network"
  scale = stated.resolve(config).encoder.input_scale
  np.testing.assert_allclose(scale, 20.5**0.5)


@pytest.mark.parametrize("arg", ["labels=5", "num_labels=many", "nonsense"])
def test_the_config_refuses_what_it_does_not_know(arg):
  with pytest.raises(config_lib.ConfigError):
    billion.get_config(arg)


def test_linear_and_dense_configs_are_planned():
  mesh = mesh_lib.make_mesh()
  config = config_lib.base()
  config.family = "linear"
  config.data.num_rows, config.data.num_features = 10_000, 1_000
  config.data.num_labels, config.data.features_per_row = 5_000, 20.0
  config.head.blocks = 8
  linear = stated.resolve(config)
  model = model_lib.Model(linear)
  found = needs.of_step(model, linear, mesh)
  # Pairs that rows with one label bring: 10,000 rows of 20 features.
  pairs = 10_000 * 20
  wide = (4 + 2) * pairs // 8 + 4 * 1_001
  assert found.weight_bytes == wide + 4 * 5_000 // 8
  parts = dict.fromkeys(("rows", "head", "encoder", "encoder_optimizer"), 0)
  done = work.of_step(linear, model, parts, 8, 0)
  read = linear.train.batch_size * 24 * pairs / 1_000
  assert done.flops == 2 * 2 * read / 8
  config.data.dense, config.family = True, "network"
  network = stated.resolve(config)
  model = model_lib.Model(network)
  found = needs.of_step(model, network, mesh)
  batch = network.train.batch_size
  assert found.batch_bytes == 4 * batch // 8 * (1_000 + 8 + 2)
  done = work.of_step(network, model, parts, 8, 0)
  assert done.encoder_flops == 4 * batch * 1_000 * 1024 / 8
