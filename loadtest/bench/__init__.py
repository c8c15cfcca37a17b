"""Benchmarks of the kernel alone, without HTTP: the only part of loadtest that imports the service.

Commands: `decode_bench`, `filter_bench` (requests with filters) and `growth` (decoding while items
are added). Reading order: `decode_bench`, `options`, `synthetic` (catalogues of any size),
`filter_bench`, `growth`, `flops`, `memory`, `prefix_trie` (a left-to-right competitor), `report`.
Knows no training.
"""
