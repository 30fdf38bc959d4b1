"""Formats, cached data sets, statistics and the input pipeline."""
