"""Quantisation: a neutral plan (what), and lowerings that write it for a target (how)."""
