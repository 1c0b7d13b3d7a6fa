"""What things cost: scoring, training and evaluation, and the latency of compact networks."""
