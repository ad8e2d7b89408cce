"""Text from mask to text: all positions of a canvas at once."""
