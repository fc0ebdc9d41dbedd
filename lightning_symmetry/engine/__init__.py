"""The monitor without a training loop around it: when to look, what to conclude, whom to tell.

May import outputs and all below. Knows no Trainer: its caller hands it a model, an optimizer, a step and outputs.
"""
