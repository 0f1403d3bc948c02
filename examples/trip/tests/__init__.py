"""What the trip promises, in parts and as a whole."""
