"""How much of transformers, and of what people write by hand, exports: burnish beside three other exporters."""
