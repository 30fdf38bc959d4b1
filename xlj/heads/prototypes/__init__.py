"""Several rows for each of the most frequent labels."""
