"""The two services and the chassis that serves them."""
