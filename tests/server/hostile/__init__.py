"""Uploads that mean harm or went wrong, by kind; see `cases`."""
