"""Hooks that other libraries call: the Hugging Face Trainer, and Lightning when it makes a Trainer.

May import the callback and the tracker. Each module is loaded only with its library.
"""
