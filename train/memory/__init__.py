"""What training takes of a device's memory, found out on the meta device: a step runs on shapes, and what it allocates is counted."""
