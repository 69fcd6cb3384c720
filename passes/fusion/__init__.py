"""Passes that make one node of several, and the way back (`unfuse`)."""
