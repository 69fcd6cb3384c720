"""Passes on the key and value cache of decoders."""
