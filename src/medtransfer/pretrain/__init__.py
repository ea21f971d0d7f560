"""Training backbones on other data; each run ends in one weights file."""
