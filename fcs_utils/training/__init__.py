"""Training: one loop for references, TFT, MLFT, KD and training from scratch."""
