"""Measurements on real data; each writes JSON that the README quotes with its commit."""
