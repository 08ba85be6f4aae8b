"""Everything that runs Punchcard on one machine, with no account anywhere and no container."""
