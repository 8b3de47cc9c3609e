"""Reports: where the padding of a plan goes, from plans and records of runs alone."""
