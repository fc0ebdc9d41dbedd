"""Several processes: the part of a tensor that each rank holds, and queries about its rows that all ranks answer.

``flattening``, ``zero`` and ``pieces`` find the part on this rank, ``team`` sends requests and answers, ``queries``
declares the queries, ``sharded`` is a matrix that sends them, ``sketches`` has the functions for other folders, and
``board`` exchanges notes without waiting. May import matrices.
"""
