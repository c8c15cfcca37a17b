"""The bytes of a small ONNX graph that joins several matrices and picks rows of the result.

ONNX Runtime has no call that joins tensors on the device where they are, for instance a GPU. It has
operators that do. The package `onnx`, which writes graphs, is not installed where the service runs.
So the graph is written here, in protobuf's wire format, with the field numbers of onnx.proto.

part_0 ... part_<n-1>: (rows of each, width) float32
places:                (m,) int64, rows of the joined matrix
picked:                (m, width) float32
"""

from __future__ import annotations

IR_VERSION, OPSET = 9, 18
FLOAT, INT64, INT_ATTRIBUTE = 1, 7, 2


def gather_graph(num_parts: int) -> bytes:
    """The graph for this many parts."""
    parts = [f"part_{n}" for n in range(num_parts)]
    graph = b"".join(
        [
            _message(1, _node("Concat", parts, "joined")),
            _message(1, _node("Gather", ["joined", "places"], "picked")),
            _message(2, b"gather"),
            *[_message(11, _value(part, FLOAT, 2)) for part in parts],
            _message(11, _value("places", INT64, 1)),
            _message(12, _value("picked", FLOAT, 2)),
        ]
    )
    return _number(1, IR_VERSION) + _message(8, _number(2, OPSET)) + _message(7, graph)


def _node(operator: str, inputs: list[str], output: str) -> bytes:
    """An operator that works along axis 0."""
    axis = _message(1, b"axis") + _number(3, 0) + _number(20, INT_ATTRIBUTE)
    names = b"".join(_message(1, name.encode()) for name in inputs)
    return names + _message(2, output.encode()) + _message(4, operator.encode()) + _message(5, axis)


def _value(name: str, element: int, num_dims: int) -> bytes:
    """An input or output of any size."""
    shape = num_dims * _message(1, b"")
    tensor = _number(1, element) + _message(2, shape)
    return _message(1, name.encode()) + _message(2, _message(1, tensor))


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more bytes follow."""
    start = []
    while value > 127:
        start.append(value & 127 | 128)
        value >>= 7
    return bytes([*start, value])
