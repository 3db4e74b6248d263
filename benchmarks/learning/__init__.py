"""What is learned: every task, limit and seed that docs/results.md speaks of, as committed data."""
