"""A saga as a user of Sagaproof would write it, and the orders of the demo."""
