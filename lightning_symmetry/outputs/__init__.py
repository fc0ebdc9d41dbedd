"""Destinations of reports: TensorBoard, other loggers, folders, the console. An output knows nothing of the training.

May import verdicts, the events of the TensorBoard plugin, and matrices.
"""
