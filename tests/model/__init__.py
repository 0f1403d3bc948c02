"""The exhaustive model: every order of events there is, with the real decide() and fence."""
