"""Weights where a feature and a label meet: sparse one-vs-all weights."""
