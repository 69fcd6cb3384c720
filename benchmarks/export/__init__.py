"""How much of transformers, and of what people write by hand, exports: burnish and three others."""
