"""Who may enter, and how many requests at a time.

Reading order: `keys` (whose key it is), `gate` (how many requests of clients may be inside),
`admission_rules` (which gate or waiting line a request has to pass), `bodies_in_progress` (bodies
that are still arriving).
"""
