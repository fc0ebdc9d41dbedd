"""Where a report goes: TensorBoard, other loggers, the console; pictures. An output knows its medium, not the training.

May import verdicts, the events of the TensorBoard plugin, and matrices.
"""
