"""Real language and speech models, from file to words: the exported graphs beside PyTorch."""
