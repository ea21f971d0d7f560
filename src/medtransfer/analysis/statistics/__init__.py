"""Statistics over arrays: pure functions, with an explicit generator where anything is drawn."""
