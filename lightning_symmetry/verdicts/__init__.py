"""What is seen at a check, what follows from several of them, and how it is said.

May import units, ranks and matrices. `verdict`, `tables` and `report` do without torch.
"""
