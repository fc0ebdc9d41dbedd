"""What a check sees, what follows from several checks, and how it is put into words.

May import units, ranks and matrices. The conclusions are plain data (`verdict`, `stops`, `codes`, `diagnoses`,
`model_diagnosis`, `access`, `heads`), which `tables`, `text`, `advice`, `html` and `plotting` show; `report` has a
method for each. None of these modules imports torch: TensorBoard loads some of them at every start.
"""
