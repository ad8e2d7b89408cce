"""Files, folders and hub datasets to records."""
