"""Extreme classification in JAX."""
