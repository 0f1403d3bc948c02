"""The orchestrator: owns saga instances, asks participants, decides what is next."""
