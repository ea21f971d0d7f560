"""From the tracking store to an answer: load -> compare -> report. Never imports torch."""
