"""Runs made of runs: means of their checkpoints."""
