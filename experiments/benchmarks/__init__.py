"""Ratios measured in one run against a named alternative."""
