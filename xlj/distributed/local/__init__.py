"""Several processes of a job on one machine."""
