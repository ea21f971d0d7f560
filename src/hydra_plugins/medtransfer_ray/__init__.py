"""Hydra finds the launcher of trials on Ray here."""
