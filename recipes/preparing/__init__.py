"""Rows prepared on disk: by `seodang prepare --data`, and by training where the data is large."""
