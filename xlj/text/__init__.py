"""Texts to features: words, tokens, embeddings."""
