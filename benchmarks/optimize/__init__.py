"""burnish's optimiser beside six others, on real-size models: `python -m burnish.benchmarks.optimize`."""
