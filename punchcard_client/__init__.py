"""What a Python backend uses beside the generated stubs."""
