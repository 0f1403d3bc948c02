"""The outside world: starts, breaks, loads and judges the system."""
