"""What other libraries call: the Hugging Face Trainer, and Lightning when it makes a Trainer.

May import the callback and the tracker. Each module is loaded only by those who use its library.
"""
