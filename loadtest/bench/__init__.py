"""Benchmarks of the kernel alone, without HTTP: the one part of loadtest that imports the service.

Reading order: `decode_bench` (the command), `options`, `synthetic` (catalogues of any size),
`growth` (decoding while items are added), `flops`, `memory`, `prefix_trie` (a left-to-right rival),
`report`.
"""
