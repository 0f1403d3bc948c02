"""The exhaustive model: every order of events, with the real decide(), reactions and fence."""
