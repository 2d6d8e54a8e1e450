"""Stands in for torchvision on the test server: see ../README.md."""

from stand_in import stand_in

stand_in(__name__)
