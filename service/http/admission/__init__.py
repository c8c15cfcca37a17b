"""Who is let in, and how many at a time.

Reading order: `keys` (who somebody is), `gate` (how many clients may be inside), `doors` (who
passes which gate or line), `arriving` (bodies that are on their way).
"""
