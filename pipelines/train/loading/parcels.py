"""Objects between a rank and its decoding processes: small parts go over a socket, large ones through shared memory.

All buffers of an object (tensors, arrays, columns of a table) are written one after the other into one anonymous file in
memory, whose descriptor goes along with the message; the receiver maps it, and its tensors lie there. So a batch costs one
copy, and one descriptor for as long as it is used. The file has no name: nothing stays behind, however a process ends, and
nothing depends on the size of /dev/shm, which is 64 MiB in a container unless one asks for more.
"""

from __future__ import annotations

import array
import io
import mmap
import os
import pickle
import socket
import struct
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_HEADER = struct.Struct(">QI")
"""Bytes of the pickle, number of buffers; the buffers' sizes follow."""
_ALIGNMENT = 64
_CLOSE_ON_EXEC: int = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class Parcel:
    """A packed object, which can be sent more than once."""

    def __init__(self, value: Any) -> None:
        """Pack ``value``. Raises what pickling it raises, and OSError where memory is full."""
        buffers: list[pickle.PickleBuffer] = []
        stream = io.BytesIO()
        _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(value)
        parts = [buffer.raw() for buffer in buffers]
        sizes = [part.nbytes for part in parts]
        pickled = stream.getbuffer()
        self._message = b"".join(
            [_HEADER.pack(len(pickled), len(sizes)), struct.pack(f">{len(sizes)}Q", *sizes), pickled]
        )
        self._file = _write(parts) if sum(sizes) else -1

    def send(self, connection: socket.socket) -> None:
        """Send it. Raises OSError when the other end is gone."""
        files = [self._file] if self._file >= 0 else []
        sent = socket.send_fds(connection, [self._message], files)
        connection.sendall(memoryview(self._message)[sent:])

    def close(self) -> None:
        """Give up this end's hold on the memory."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()


def receive(connection: socket.socket) -> Any:
    """The next object, in memory that its tensors share with nobody. Raises EOFError when the other end is gone."""
    files = array.array("i")
    header = _read(connection, _HEADER.size, files)
    try:
        pickled_bytes, count = _HEADER.unpack(header)
        sizes = struct.unpack(f">{count}Q", _read(connection, 8 * count, files))
        pickled = _read(connection, pickled_bytes, files)
        buffers = _map(files[0], sizes) if files else [memoryview(b"")] * count
    finally:
        for file in files:
            os.close(file)
    return pickle.loads(pickled, buffers=buffers)  # noqa: S301 - from a process of this program, over its own socket


class _Pickler(pickle.Pickler):
    """Pickles tensors as buffers, also of dtypes that numpy does not have."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is not Tensor:
            return NotImplemented
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return _tensor, (pickle.PickleBuffer(flat.data), value.dtype, tuple(value.shape))


def _tensor(buffer: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not memoryview(buffer).nbytes:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(buffer, dtype=torch.uint8).view(dtype).reshape(shape)


def _write(parts: Sequence[memoryview]) -> int:
    """Descriptor of an anonymous file with ``parts``, each at its place."""
    *places, end = _places([*(part.nbytes for part in parts), 0])
    file = anonymous_file()
    try:
        os.ftruncate(file, end)
        for place, part in zip(places, parts, strict=True):
            while part.nbytes:
                written = os.pwrite(file, part, place)
                place, part = place + written, part[written:]
    except BaseException:
        os.close(file)
        raise
    return file


def anonymous_file() -> int:
    """Descriptor of a new file in memory that has no name, or of one that has none any more."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("kineograph-batch", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _map(file: int, sizes: Sequence[int]) -> list[memoryview]:
    """The parts of a file that :func:`_write` wrote. They hold the memory."""
    *places, end = _places([*sizes, 0])
    populate = getattr(mmap, "MAP_POPULATE", 0)  # at once, and not page by page where it is read first
    memory = memoryview(mmap.mmap(file, end, mmap.MAP_SHARED | populate))
    return [memory[place : place + size] for place, size in zip(places, sizes, strict=True)]


def _places(sizes: Sequence[int]) -> list[int]:
    """Where parts of these sizes begin, one after the other."""
    places, place = [], 0
    for size in sizes:
        places.append(place)
        place += -(-size // _ALIGNMENT) * _ALIGNMENT
    return places


def _read(connection: socket.socket, count: int, files: array.array[int]) -> bytes:
    """``count`` bytes; descriptors that come along are added to ``files``."""
    data = bytearray()
    while len(data) < count:
        piece, more, _, _ = socket.recv_fds(connection, count - len(data), 1, _CLOSE_ON_EXEC)
        files.extend(more)
        if not piece:
            raise EOFError("the other end is gone")
        data += piece
    return bytes(data)
