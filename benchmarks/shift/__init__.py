"""What the shift score notices of disturbed observations, and of another task."""
