"""The batcher turns images into answers: it admits jobs, batches them, and settles their tokens."""
