"""The payment service: customers' accounts and a double-entry ledger."""
