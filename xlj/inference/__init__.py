"""A trained run, asked for labels."""
