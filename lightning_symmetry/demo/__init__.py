"""What ``lightning-symmetry demo`` trains and prints; the only folder that needs the extra ``demo``.

``digits`` has the network, the data and the training; ``gallery`` compares initialisations, ``repairs`` the ways out.
"""
