"""What a run needs and costs, found without running it."""
