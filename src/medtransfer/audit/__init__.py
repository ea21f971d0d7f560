"""What in a dataset would make its results untrue: leaks, duplicates, shortcuts."""
