"""Networks that people write by hand."""
HANDMADE = {}
