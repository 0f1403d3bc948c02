"""What `chaos evidence` leaves in docs/evidence: pages of real output, each with its commit."""
