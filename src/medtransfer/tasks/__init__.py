"""LightningModules: loss, metrics and predictions of each task."""
