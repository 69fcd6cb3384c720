"""How fast, how accurate, against whom: measuring, the kit of real models, the demo."""
