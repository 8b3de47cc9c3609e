"""Files in, ragged columns out."""
