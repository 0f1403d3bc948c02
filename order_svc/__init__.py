"""The order service: the price list, the orders, the customer's door."""
