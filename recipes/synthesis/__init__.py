"""What `seodang synthesise` consists of: rounds of asking, filters, and what became of every attempt."""
