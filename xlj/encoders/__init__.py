"""Encoders: features to embeddings."""
