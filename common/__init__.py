"""The language and the plumbing that every service shares; knows no business process."""
