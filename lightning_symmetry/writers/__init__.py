"""Where a report goes: TensorBoard and the console. A writer knows its medium, not the training."""
