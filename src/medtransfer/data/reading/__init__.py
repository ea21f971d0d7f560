"""Pixels from the files that hospitals and laboratories have, one module a family of formats."""
