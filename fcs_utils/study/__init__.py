"""Which runs make a study, and doing each of them once."""
