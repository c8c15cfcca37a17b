"""Benchmarks of the kernel alone, without HTTP: the only part of loadtest that imports the service.

Commands: `decode_bench` and `growth` (decoding while items are added). Reading order:
`decode_bench`, `options`, `synthetic` (catalogues of any size), `growth`, `flops`, `memory`,
`prefix_trie` (a left-to-right competitor), `report`. Knows no training.
"""
