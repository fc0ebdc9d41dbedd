"""Several processes: what each rank holds of a tensor, and how all of them answer queries about its rows.

``fsdp1`` and ``pieces`` find what this rank holds, ``team`` sends requests and answers, ``queries`` declares what can
be asked, ``sharded`` is the matrix that asks, and ``sketches`` what other folders use beside it. May import matrices.
"""
