"""One row for each label."""
