"""Load tests: they know the service only over HTTP and a bundle only by its held_out.jsonl.

Reading order: held_out, replay, locustfile. The method is in README.md beside this file.
"""
