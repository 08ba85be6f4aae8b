"""Punchcard's two services and the chassis that both stand on."""
