"""Tars and zips that are read in place."""
