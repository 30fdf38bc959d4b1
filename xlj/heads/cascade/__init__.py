"""Groups first, then the labels of the likely ones."""
