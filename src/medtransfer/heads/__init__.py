"""What turns features into a task's output."""
