"""ONNX's own node tests as a test of optimisers: what is left of each case, for burnish and its peers."""
