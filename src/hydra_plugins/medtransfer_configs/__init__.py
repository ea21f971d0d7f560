"""Hydra finds the reader of users' config files here."""
