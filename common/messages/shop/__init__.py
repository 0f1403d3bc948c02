"""The shop's contracts, a module for each service. Pure; the language all services share.

A change that an older reader would misread gets a new `version`, never a new meaning: tests/golden
pins the wire form. All are imported here, so that a service dead-letters another service's message
as such, not as one of an unknown type.
"""

from common.messages.shop import inventory, order, payment

__all__ = ["inventory", "order", "payment"]
