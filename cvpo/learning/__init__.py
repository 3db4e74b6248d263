"""What is learned and how: the E-step, the M-step, critics, the limit, and one update of them together."""
