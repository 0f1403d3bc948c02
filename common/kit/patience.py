"""How long an answer may take, and how often it is asked for again. Pure.

Owns: timeouts with backoff and jitter. Must not know: a clock, dice, and what is given up when.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Policy:
    """How long to wait and how often to ask; seconds."""

    timeout_seconds: float
    attempts: int
    backoff_first_seconds: float
    backoff_cap_seconds: float
    resend_cap_seconds: float
    stuck_after_seconds: float
    approval_expiry_seconds: float = 604_800.0

    def patience(self, attempt: int, *, capped: bool, jitter: float) -> float:
        """How long attempt `attempt` may stay unanswered; `jitter` in [0, 1) is the caller's dice.

        The timeout, and from the second attempt on exponential backoff with full jitter.
        Uncapped attempts (undo, fence, retriable) slow down to `resend_cap_seconds`.
        """
        doubled = self.backoff_first_seconds * 2.0 ** min(attempt - 2, 32) if attempt > 1 else 0.0
        if capped:
            return self.timeout_seconds + jitter * min(doubled, self.backoff_cap_seconds)
        return min(self.timeout_seconds + jitter * doubled, self.resend_cap_seconds)
