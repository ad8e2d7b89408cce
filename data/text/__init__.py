"""Plain text: documents, their tokens on disk, and rows of them to learn from."""
