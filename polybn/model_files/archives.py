"""Zip archives from untrusted sources: limits apply to the list of members and to each member before it is read."""

from __future__ import annotations

import os
import struct
import zipfile
from typing import BinaryIO

from polybn.model_files.errors import CUT_OFF, ModelFileError

MOST_LISTED = 2**24
"""The largest list of members in bytes; a member takes some 60 and its name."""
MOST_STORED, MOST_PACKED = 2**30, 2**28
"""The largest member in bytes: stored, and compressed, where few bytes can expand to many."""
_END, _END64 = b"PK\5\6", b"PK\6\6"


def open_archive(file: BinaryIO) -> zipfile.ZipFile:
    """Open an archive, unless its list of members is too long."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 2**16 - 22, 0))
    tail = file.read()
    place = tail.rfind(_END)
    if place < 0 or len(tail) < place + 22:
        raise ModelFileError(f"end as a zip archive; got another end ({CUT_OFF})")
    (listed,) = struct.unpack_from("<I", tail, place + 12)
    if listed == 2**32 - 1:
        place = tail.rfind(_END64)
        (listed,) = struct.unpack_from("<Q", tail, place + 40) if 0 <= place <= len(tail) - 48 else (size,)
    if listed > MOST_LISTED:
        raise ModelFileError(f"list its members in at most {MOST_LISTED:,} bytes; got {listed:,}")
    archive = zipfile.ZipFile(file)
    if len(set(archive.namelist())) != len(archive.namelist()):
        raise ModelFileError("hold each member once; got one twice")
    return archive


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read a member, unless it is too large."""
    info = archive.getinfo(name)
    most = MOST_STORED if info.compress_type == zipfile.ZIP_STORED else MOST_PACKED
    if info.file_size > most:
        raise ModelFileError(f"have members of at most {most:,} bytes; got {info.file_size:,} in {name:.80}")
    return archive.read(info)
