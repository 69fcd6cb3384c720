"""The main job on a real model, end to end: export, optimise, quantise, run, measure."""
