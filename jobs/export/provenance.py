"""Says in an image file itself that it was generated, and by what: XMP with the properties of IPTC's photo metadata.

The packet is put beside the encoded pixels, which stay as they are. Properties: IPTC Photo Metadata Standard 2025.1,
https://iptc.org/std/photometadata/specification; where a packet goes in PNG and JPEG: XMP Specification Part 3; in WebP: RFC 9649.
"""

import io
import re
import struct
import zlib
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from PIL import Image

from schemas.config import SAMPLING_COLUMNS

X, RDF = "adobe:ns:meta/", "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
IPTC, XMP, OWN = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/", "http://ns.adobe.com/xap/1.0/", "urn:promptmill:draw/"
SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
MOST_TEXT = 4000  # characters of a prompt: a packet in a JPEG has 64 kB
DRAW = ("sample_id", "seed", "draw_index", "scheduler", *SAMPLING_COLUMNS)
INPUTS = ("init_sha256", "mask_sha256", "control_sha256", "reference_sha256")
for _prefix, _uri in {"x": X, "rdf": RDF, "Iptc4xmpExt": IPTC, "xmp": XMP, "promptmill": OWN}.items():
    ElementTree.register_namespace(_prefix, _uri)


def embed(data: bytes, row: Mapping[str, Any], *, version: str) -> bytes:
    """The image file with the provenance of its row of metadata; ``version`` is promptmill's."""
    packet = xmp(row, version=version)
    if data.startswith(b"\x89PNG"):
        return _png(data, packet)
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data, packet)
    return _webp(data, packet)


def xmp(row: Mapping[str, Any], *, version: str) -> bytes:
    """An XMP packet."""
    prompt = row["prompt"] + (f"\nnegative prompt: {row['negative_prompt']}" if row["negative_prompt"] else "")
    facts = {
        f"{{{IPTC}}}DigitalSourceType": source_type(row["mode"]),
        f"{{{IPTC}}}AISystemUsed": row["model"],
        f"{{{IPTC}}}AISystemVersionUsed": row["model_revision"],
        f"{{{IPTC}}}AIPromptInformation": prompt,
        f"{{{XMP}}}CreatorTool": f"promptmill {version}",
        **{f"{{{OWN}}}{name}": row[name] for name in DRAW + INPUTS if row.get(name) is not None},
    }
    meta = ElementTree.Element(f"{{{X}}}xmpmeta")
    description = ElementTree.SubElement(ElementTree.SubElement(meta, f"{{{RDF}}}RDF"), f"{{{RDF}}}Description")
    description.set(f"{{{RDF}}}about", "")
    for name, value in facts.items():
        description.set(name, _text(str(value)))
    return ElementTree.tostring(meta, encoding="utf-8")


def source_type(mode: str) -> str:
    """IPTC's term for how an image came to be; those that keep parts of a given one are composites."""
    return SOURCE_TYPES + ("compositeWithTrainedAlgorithmicMedia" if mode in ("inpainting", "outpainting") else "trainedAlgorithmicMedia")


def _text(text: str) -> str:
    """As XML may hold it, and not too long."""
    legal = re.sub("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)
    return legal if len(legal) <= MOST_TEXT else legal[: MOST_TEXT - 1] + "…"


def _png(data: bytes, packet: bytes) -> bytes:
    """After the header, which is 33 bytes with the signature."""
    body = b"iTXt" + b"XML:com.adobe.xmp\0\0\0\0\0" + packet
    return data[:33] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + data[33:]


def _jpeg(data: bytes, packet: bytes) -> bytes:
    """After the JFIF segment, if the file begins with one."""
    start = 4 + struct.unpack(">H", data[4:6])[0] if data[2:4] == b"\xff\xe0" else 2
    body = XMP.encode() + b"\0" + packet
    return data[:start] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[start:]


def _webp(data: bytes, packet: bytes) -> bytes:
    """At the end, and announced in the extended header, which a plain file gets."""
    chunks = data[12:]
    if not chunks.startswith(b"VP8X"):
        with Image.open(io.BytesIO(data)) as picture:
            width, height, alpha = picture.width, picture.height, 0x10 if picture.mode == "RGBA" else 0
        sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        chunks = _chunk(b"VP8X", bytes([alpha, 0, 0, 0]) + sides) + chunks
    chunks = chunks[:8] + bytes([chunks[8] | 0x04]) + chunks[9:] + _chunk(b"XMP ", packet)
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def _chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
