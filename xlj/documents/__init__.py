"""Texts and their labels: files to memory maps."""
