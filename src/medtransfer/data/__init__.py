"""Datasets, splits, transforms and loaders."""
