"""What is wrong with a run, looked for without changing it."""
