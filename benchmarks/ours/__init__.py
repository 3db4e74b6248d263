"""Our contestants: what `cvpo train` runs, alone."""
