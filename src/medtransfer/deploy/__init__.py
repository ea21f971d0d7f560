"""What becomes of a trial that is done: it judges new images, is exported, and explains itself."""
