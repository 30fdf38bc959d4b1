"""Losses on a chunk of logits, one small file per family."""
