"""Tests of the trip's promises, in parts and as a whole."""
