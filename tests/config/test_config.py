"""Rules, checks and comparison of configs."""

import dataclasses
import functools
import json

import ml_collections
import pytest

from tests import runs
from xlj import config as config_lib
from xlj.config import checks
from xlj.config import options

FACTS = dataclasses.replace(
  runs.FACTS,
  num_rows=10_000,
  num_labels=3_000,
  labels_per_row=2.0,
  features_per_row=40.0,
)
facts = functools.partial(dataclasses.replace, FACTS)


def open_fields(config):
  """Open fields that are read."""
  flat = dict(checks.flatten(config))
  unread = options.unread(config_lib.SWITCHES, flat)
  return {n for n, value in flat.items() if value is None} - unread.keys()


@pytest.mark.parametrize(
  "changes",
  [{}, {"num_labels": 100}, {"dense": True, "kind": "dense"}, {"num_rows": 3}],
)
def test_resolving_leaves_no_field_open(changes):
  config = config_lib.resolve(config_lib.base(), facts(**changes))
  assert not open_fields(config)


@pytest.mark.parametrize(
  "changes, family",
  [
    # 1.5e12 products of a feature and a label, but 480 million that meet
    (
      {
        "num_rows": 2_000_000,
        "num_features": 500_000,
        "num_labels": 3_000_000,
        "features_per_row": 60.0,
        "labels_per_row": 4.0,
      },
      "linear",
    ),
    ({"num_rows": 2 * 10**9}, "linear"),  # of 15 million that there are
    ({"num_rows": 10**8, "num_features": 10**6}, "embedding"),
  ],
)
def test_linear_is_for_as_many_pairs_as_fit(changes, family):
  found = config_lib.resolve(config_lib.base(), facts(**changes))
  assert found.family == family


def test_fields_given_are_kept():
  config = config_lib.base()
  config.train.num_steps = 7
  config.head.loss = "softmax"
  config.optim.wide.learning_rate = 0.5
  resolved = config_lib.resolve(config, FACTS)
  assert resolved.train.num_steps == 7
  assert resolved.head.loss == "softmax"
  assert resolved.optim.wide.learning_rate == 0.5


def test_setting_a_field_leaves_its_neighbours_open():
  config = config_lib.base()
  config.encoder.dim = 3
  assert config.data.num_rows is None
  assert config.train.batch_size is None


@pytest.mark.parametrize(
  "field, value, message",
  [
    ("family", "forest", "family is 'forest'; use one of"),
    ("head.loss", "hinge", "head.loss is 'hinge'; use one of"),
    ("head.init", "zero", "head.init is 'zero'"),
    ("optim.decay", "step", "optim.decay is 'step'"),
    ("optim.head.name", "lion", "optim.head.name is 'lion'"),
    ("data.weighting", "bm25", "data.weighting is 'bm25'"),
    ("data.weighting", "auto", "data.weighting is 'auto'"),
    ("train.batch_size", 0, "train.batch_size is 0; it must be at least 1"),
    ("eval.every", -1, "eval.every is -1"),
    ("data.validation", 1.0, "data.validation is 1.0; it must be in"),
    ("encoder.embedding_dropout", -0.1, "encoder.embedding_dropout is -0.1"),
    ("eval.ks", (0, 1), "eval.ks is"),
    ("eval.figures", "all", r"'all'; use one of \('classification', 'reco"),
    ("eval.metric", "P@2", "eval.metric is 'P@2'; use one of P@1, P@3"),
    ("head.wide", False, "there is nothing to train"),
    ("head.init", "centroid", "which encoder.dim=0 does not read"),
  ],
)
def test_bad_values_are_refused_by_name(field, value, message):
  config = config_lib.base()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(config_lib.ConfigError, match=message):
    config_lib.resolve(config, FACTS)


@pytest.mark.parametrize("metric", ["PSP@1", "MacroF1@1"])
def test_a_metric_of_counts_needs_them(metric):
  config = config_lib.base()
  config.update_from_flattened_dict(
    {"eval.metric": metric, "head.order": "none"}
  )
  with pytest.raises(config_lib.ConfigError, match="head.order that counts"):
    config_lib.resolve(config, FACTS)


@pytest.mark.parametrize("field", ["dense", "renumber"])
def test_what_a_row_has_needs_the_ids_of_labels(field):
  config = config_lib.base()
  config.predict.exclude_seen = True
  dense = field == "dense"
  found = facts(dense=dense, kind="dense" if dense else "counts")
  config.data.renumber = not dense
  with pytest.raises(config_lib.ConfigError, match=f"data.{field} is True"):
    config_lib.resolve(config, found)


def test_a_wide_path_needs_sparse_features():
  config = config_lib.base()
  config.head.wide = True
  with pytest.raises(config_lib.ConfigError, match="head.wide needs sparse"):
    config_lib.resolve(config, facts(dense=True, kind="dense"))


@pytest.mark.parametrize(
  "fields, changes, message",
  [
    ({}, {"dense": True, "kind": "dense"}, "only sparse rows are compared"),
    ({"head.type": "mhc"}, {}, "it needs head.type='dense'"),
    ({"head.prototypes": 3}, {}, "and head.prototypes=1"),
  ],
)
def test_near_rows_need_one_row_of_each_label(fields, changes, message):
  config = config_lib.base()
  config.update_from_flattened_dict({"family": "network", **fields})
  found = config_lib.resolve(config, facts(**changes))
  assert not found.neighbours.count
  config.neighbours.count = 5
  with pytest.raises(config_lib.ConfigError, match=message):
    config_lib.resolve(config, facts(**changes))


def test_json_round_trip_and_differences(tmp_path):
  config = config_lib.resolve(config_lib.base(), FACTS)
  path = tmp_path / "config.json"
  path.write_text(config_lib.to_json(config))
  loaded = config_lib.load(path)
  assert not config_lib.differences(loaded, config)
  other = ml_collections.ConfigDict(config.to_dict())
  other.train.batch_size = 32
  other.data.dir = "/elsewhere"  # moving the files is not another run
  found = config_lib.differences(loaded, other)
  assert found == {"train.batch_size": (512, 32)}
  with pytest.raises(
    config_lib.ConfigError, match="train.batch_size: 512 there"
  ):
    config_lib.check_same_run(loaded, other, "WD")


def test_loading_what_is_not_a_run_is_refused(tmp_path):
  with pytest.raises(config_lib.ConfigError, match="does not exist"):
    config_lib.load(tmp_path / "config.json")
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(config_lib.ConfigError, match="is not a JSON config"):
    config_lib.load(tmp_path / "config.json")


def test_parse_arg():
  parse = config_lib.parse_arg
  assert parse("", ("a",), objective="p") == {"name": "", "objective": "p"}
  assert parse("a", ("a",), objective="p")["name"] == "a"
  assert parse("a,objective=psp", ("a",), objective="p")["objective"] == "psp"
  assert parse("objective=psp", ("a",), objective="p")["objective"] == "psp"
  for bad in ("b", "a,b", "a,x=1", "a,a"):
    with pytest.raises(config_lib.ConfigError, match="not known here"):
      parse(bad, ("a",), objective="p")
  found = parse("n=1_000", (), n=1, x=0.5, of=("p", "q"))
  assert found == {"name": "", "n": 1_000, "x": 0.5, "of": "p"}
  for bad, message in (
    ("n=1.5", "n=1.5 is not a whole number"),
    ("n=" + "9" * 5_000, "is not a whole number"),
    ("x=nan", "x=nan is not a number"),
    ("x=inf", "x=inf is not a number"),
    ("of=r", "of=r; use p or q"),
  ):
    with pytest.raises(config_lib.ConfigError, match=message):
      parse(bad, (), n=1, x=0.5, of=("p", "q"))


@pytest.mark.parametrize("key", ["head", "family", "missing", "noisy"])
def test_unknown_values_of_keys_are_refused_at_once(key):
  with pytest.raises(config_lib.ConfigError, match=f"{key}=xyz; use "):
    runs.config_file("xmc").get_config(f"{key}=xyz")


def test_every_set_of_configs_xmc_resolves():
  module = runs.config_file("xmc")
  for name in module._SETS:
    for arg in (name, f"{name},objective=psp"):
      config_lib.resolve(module.get_config(arg), FACTS)
  with pytest.raises(config_lib.ConfigError, match="objective=x; use"):
    module.get_config("objective=x")


# What is known of bibtex and of delicious, but for the files' hash.
BIBTEX = facts(
  num_rows=4_880,
  num_features=1_836,
  num_labels=159,
  labels_per_row=2.4,
  features_per_row=68.5,
  kind="binary",
)
DELICIOUS = facts(
  num_rows=12_920,
  num_features=500,
  num_labels=983,
  labels_per_row=19.0,
  features_per_row=18.5,
  kind="binary",
)


@pytest.mark.parametrize(
  "name, about", [("bibtex", BIBTEX), ("delicious", DELICIOUS)]
)
def test_networks_need_no_set(name, about):
  module = runs.config_file("xmc")
  default, named = (
    config_lib.resolve(module.get_config(arg), about) for arg in ("", name)
  )
  assert default.family == "network"
  assert not config_lib.differences(default, named)


@pytest.mark.parametrize(
  "about, rate, power", [(BIBTEX, 1e-3, 1.0), (DELICIOUS, 5e-3, 0.5)]
)
def test_networks_go_by_the_labels_of_a_row(about, rate, power):
  config = config_lib.resolve(config_lib.base(), about)
  assert config.optim.encoder.learning_rate == 5e-3
  assert config.optim.head.learning_rate == rate
  assert config.predict.propensity_power == power


@pytest.mark.parametrize("num_rows, share", [(19_999, 0.0), (20_000, 0.05)])
def test_networks_hold_out_rows_where_there_are_many(num_rows, share):
  about = dataclasses.replace(BIBTEX, num_rows=num_rows)
  config = config_lib.resolve(config_lib.base(), about)
  assert config.data.validation == share


def test_a_config_of_an_earlier_version_gets_the_fields_it_lacks(tmp_path):
  config = config_lib.base()
  config.head.loss = "bce"
  config = config_lib.resolve(config, FACTS)
  saved = json.loads(config_lib.to_json(config))
  del saved["head"]["kernels"], saved["mesh"]
  path = tmp_path / "config.json"
  path.write_text(json.dumps(saved))
  loaded = config_lib.load(path)
  assert loaded.head.kernels == "never" and loaded.head.loss == "bce"
  assert not config_lib.differences(loaded, config)
