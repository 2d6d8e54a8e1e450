"""Concepts that come with the package."""
