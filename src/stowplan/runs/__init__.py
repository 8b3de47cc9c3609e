"""Plans put to work: columns bound to a kernel, one loop over batches, and what wraps it."""
