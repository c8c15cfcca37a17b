"""From the network to requests: the port, the parser, and the protocol around it.

Reading order: `port` (takes connections while file descriptors are left), `parser` (httptools,
without upgrades and trailers), `protocol` (uvicorn's, with limits and one error body).
"""
