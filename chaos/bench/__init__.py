"""Measurements: our saga beside DBOS, the two styles, hot SKUs."""
