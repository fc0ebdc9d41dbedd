"""The command ``lightning-symmetry demo``; the only folder that needs the extra ``demo``.

``digits`` has network, data and training, ``gallery`` compares initialisations, and ``repairs`` compares repairs.
"""
