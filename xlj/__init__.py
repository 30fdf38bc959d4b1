"""Extreme classification in JAX: thousands to billions of labels."""

from xlj.predictor import load as load

__version__ = "0.1.0"
