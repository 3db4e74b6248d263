"""A run: from its settings to checkpoints, metrics and a resume after any end."""
