"""A softmax for each digit of the label."""
