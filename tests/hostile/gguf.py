"""Writes GGUF files, sound or not."""

import struct

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
ALIGNMENT = 32


def string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def array(kind, items, n=None):
    return struct.pack("<IQ", kind, len(items) if n is None else n) + b"".join(items)


def encoded(value):
    """The type and the bytes of a value; pairs of both are taken as they are."""
    if isinstance(value, tuple):
        return value
    if isinstance(value, bool):
        return BOOL, bytes([value])
    if isinstance(value, int):
        return U32, struct.pack("<I", value)
    if isinstance(value, float):
        return F32, struct.pack("<f", value)
    if isinstance(value, str):
        return STRING, string(value)
    if value and isinstance(value[0], float):
        return ARRAY, array(F32, [struct.pack("<f", item) for item in value])
    if value and isinstance(value[0], int):
        return ARRAY, array(I32, [struct.pack("<i", item) for item in value])
    return ARRAY, array(STRING, [string(item) for item in value])


class Gguf:
    """A file in parts: keys as (name, value), tensors as (name, shape, type, bytes, offset or None)."""

    def __init__(self):
        self.keys, self.tensors = [], []
        self.magic, self.version = b"GGUF", 3
        self.n_keys = self.n_tensors = None

    def set(self, name, value):
        """Replaces a key, or removes it if the value is None."""
        self.keys = [(key, old) for key, old in self.keys if key != name]
        if value is not None:
            self.keys.append((name, value))
        return self

    def data(self):
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        out = bytearray(self.magic + struct.pack("<IQQ", self.version, n_tensors, n_keys))
        for name, value in self.keys:
            kind, data = encoded(value)
            out += string(name) + struct.pack("<I", kind) + data
        body = bytearray()
        for name, shape, kind, data, offset in self.tensors:
            body += bytes(-len(body) % ALIGNMENT)
            out += string(name) + struct.pack("<I", len(shape))
            out += b"".join(struct.pack("<Q", n) for n in reversed(shape))
            out += struct.pack("<IQ", kind, len(body) if offset is None else offset)
            body += data
        out += bytes(-len(out) % ALIGNMENT)
        return bytes(out + body)
