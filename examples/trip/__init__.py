"""A saga of your own: a trip of a flight, a hotel and a car."""
