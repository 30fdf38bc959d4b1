"""Exported models: a small directory that answers without its run.

Format 1, as `export` writes it and `model` reads it:

* `manifest.json`, written last: "format", "xlj" (version), "made" (date),
  "kind", "input" ("texts", "items", "images", "sparse" or "dense"),
  "num_features",
  "num_labels" (label rows), "num_ids", "weighting" (see `xlj.data.weighting`),
  "dtype", "config" (field to value), "neighbours" and "calibration" (or null),
  "measured" (figures on held-out rows before and after, or null), "index" (its
  "library" and "lists", how many "probes" of them had which "recall" of the
  "k" best labels, or null), and "files", the "bytes" and "sha256" of all others
  by name.
* `weights.safetensors` (see `tensors`): `bias [L]` float32, in which what rare
  labels gain is contained; `label_ids [L]`, the id of each row, absent where
  they are the rows' numbers; `label_counts [L]` int32, if known; and for sparse
  features `idf [F]` float32. All else is as the kind says.
* `labels.txt`, a name for each id, and `feature_names.txt`, if there are any
* `featurizer/`: what makes features of texts, by its own `save`
* `index/`: lists of label rows, by `xlj.search.index`, if it was asked for
* `README.md`: what the model is, and how good

Kind "linear", weights by feature: `starts [F + 1]` int64; those of feature f
are `starts[f]` to `starts[f + 1]` of `labels [Z]`, row numbers, unsigned and
ascending, and of `values [Z]`. With int8 and float8, `scale [F]` float32
multiplies a feature's values.

Kind "network": `encoder.NAME`, the parameters of a bag of features (see
`xlj.encoders.bag`), `label_rows [L, D]`, those of "linear" where there is a
wide path, and of runs with neighbours `neighbours.starts`, `neighbours.rows`
and `neighbours.values`, the training rows of length 1 by feature, and
`neighbours.label_starts` and `neighbours.labels`, the label rows of each. With
int8 and float8 the rows of every matrix NAME are multiplied by `NAME.scale`.
Rows of heads with cosines have length 1.

Legend: F features, L label rows, Z weights, D width.
"""
