"""Blocks drawn: numbers with their intervals, tables, figures and what they say in words."""
