"""A memory of centroids beside a cosine classifier."""
