"""MLflow: runs, configurations, status, artifacts, cost."""
