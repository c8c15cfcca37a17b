"""What became of one row in a search that has ended: call by call, until its beam died or won.

Works from what the search has kept for a job that is traced. It must not change an answer, and
knows no items, no network and no batch.

Reading order: `traced_call` (what is kept), `following` (the way of a row), `bias_parts` (what
its score gains besides its codes, and why).
"""
