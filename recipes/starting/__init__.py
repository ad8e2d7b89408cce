"""`seodang init`: a recipe folder for one's own data, from questions or from options."""
