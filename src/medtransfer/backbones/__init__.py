"""Networks that turn an image into features, and where their values come from."""
