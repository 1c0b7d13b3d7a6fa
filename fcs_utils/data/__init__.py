"""Data sets as uint8 tensors on the device: readers, fixed splits, calibration images, augmentation."""
