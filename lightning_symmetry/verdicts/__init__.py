"""What is seen at a check, what follows from several of them, and how it is said.

May import units, ranks and matrices. The conclusions are plain data (`verdict`, `stops`, `codes`, `diagnoses`,
`model_diagnosis`; `access` says how code reaches what they name, `heads` which units are heads), which `tables`,
`text`, `advice`, `html` and `plotting` show; `report` has a method for each. These modules do without torch.
"""
