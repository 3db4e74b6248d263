"""Speed, measured against peers in the same run: each benchmark is one command, `python -m benchmarks.NAME`."""
