"""The inventory service: where the pieces of every SKU are, and who holds some of them."""
