"""Load tests: they know the service only over HTTP and a bundle only by its held_out.jsonl.

Reading order: held_out, api_key, replay, locustfile; open_loop, capacity, served, then stress and
sweep with its sweep_*, which use them; store_memory. decode_bench and the modules split off from
it, the decode_*, are the exception: they time the kernel itself (docs/decisions/011). The method is
in README.md beside this file.
"""
