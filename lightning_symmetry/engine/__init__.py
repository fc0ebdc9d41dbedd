"""The monitor without a training loop: when to check, what to conclude, where to report.

May import outputs and all below. Knows no Trainer: its caller passes a model, an optimizer, a step and outputs.
"""
