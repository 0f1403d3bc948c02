"""What a user of Sagaproof would write, and what the demo is fed with."""
