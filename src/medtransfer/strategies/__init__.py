"""What of backbone and head learns, when and how fast."""
