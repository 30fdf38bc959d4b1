"""Generated data, and data made worse on purpose."""
