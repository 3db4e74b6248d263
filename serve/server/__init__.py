"""The server process: bundles, their versions, sessions, and who is let in."""
