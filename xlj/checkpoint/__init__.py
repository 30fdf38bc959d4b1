"""Checkpoints: asynchronous, atomic, checked, restored on any mesh."""
