"""Physics written once against the array API; it knows nothing of plans."""
