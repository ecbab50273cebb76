"""What one does with runs: fork, merge, select samples, export."""
