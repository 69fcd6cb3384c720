"""Random valid graphs, what passes make of them, and the smallest graph on which a pass is wrong."""
