"""How a service is served and how it remembers; knows no word of either domain."""
