"""What goes wrong around a policy service, on purpose and counted."""
