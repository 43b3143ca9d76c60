"""C2PA content credentials: an exported image file with a signed manifest that says it was generated, by what, and how.

Signed with the user's own certificate and key, by the library c2pa-python, without a network. A manifest has random
identifiers and a random salt, and most signatures are random too: the pixels of two signed exports are equal, their files are not.
The manifest: C2PA Technical Specification 2.2, https://spec.c2pa.org, sections on actions and on labels of one's own.
"""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from jobs.export.provenance import DRAW, INPUTS, source_type
from schemas.errors import ExportError

DRAW_LABEL = "promptmill.draw"
MISSING = "--c2pa: needs c2pa-python; run: pip install 'promptmill[c2pa]'"
SETTINGS = {"builder": {"thumbnail": {"enabled": False}}, "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}


class Credentials:
    """A certificate and its key, tried once; ``signer`` is the name in the certificate, ``sha256`` stands for the chain."""

    def __init__(self, certificate: Path, key: Path, *, version: str) -> None:
        """``certificate`` is a PEM file, the signer's certificate first and those that vouch for it after it; ``key`` is PKCS #8, also PEM.

        Raises ExportError if they cannot be read, do not belong together, or a signature by them would not be valid.
        """
        try:
            import c2pa  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ExportError(MISSING) from None
        self._c2pa, self._version = c2pa, version
        chain, private, algorithm, self.signer = _read(certificate, key)
        self.sha256 = hashlib.sha256(chain).hexdigest()
        try:
            self._signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(algorithm, chain, private, None))
            self._context = c2pa.Context(c2pa.Settings.from_dict(SETTINGS))
            self._try_out()
        except c2pa.C2paError as error:
            why = _line(error)
            raise ExportError(f"{certificate}: cannot sign: {why}; use one that is valid and meant for signing content") from None

    def sign(self, data: bytes, row: Mapping[str, Any]) -> bytes:
        """The image file with the manifest of its row of metadata. Raises ExportError where its format has no place for one."""
        if f"image/{row['format']}" not in self._c2pa.Builder.get_supported_mime_types():
            raise ExportError(f"--c2pa: {row['format']} files cannot carry a manifest; export without it")
        try:
            return self._signed(data, row)
        except self._c2pa.C2paError as error:
            raise ExportError(f"image {row['sample_id']}: cannot be signed: {_line(error)}; nothing was published") from None

    def _signed(self, data: bytes, row: Mapping[str, Any]) -> bytes:
        signed = io.BytesIO()
        builder = self._c2pa.Builder(manifest(row, version=self._version), self._context)
        builder.sign(self._signer, f"image/{row['format']}", io.BytesIO(data), signed)
        return signed.getvalue()

    def _try_out(self) -> None:
        """Sign a pixel and read it: before the first image, and not after the last."""
        pixel = io.BytesIO()
        Image.new("RGB", (1, 1)).save(pixel, "PNG")
        texts = ("sample_id", "mode", "model", "model_revision", "prompt", "negative_prompt")
        row = {"format": "png", **dict.fromkeys(texts, "")}
        with self._c2pa.Reader("image/png", io.BytesIO(self._signed(pixel.getvalue(), row)), context=self._context) as reader:
            results = reader.get_validation_results()["activeManifest"]
            failures = [one for one in results["failure"] if one["code"] != "signingCredential.untrusted"]  # trust is the reader's to give
        if failures:
            raise self._c2pa.C2paError("; ".join(f"{one['code']} {one.get('explanation', '')}" for one in failures))


def manifest(row: Mapping[str, Any], *, version: str) -> dict[str, Any]:
    """A manifest definition: the action that made the image, and the draw's parameters as an assertion of its own."""
    agent = {"name": row["model"], "version": row["model_revision"]}
    created = {"action": "c2pa.created", "digitalSourceType": source_type(row["mode"]), "softwareAgent": agent}
    names = ("prompt", "negative_prompt", "model", "model_revision", "mode", *DRAW, *INPUTS)
    return {
        "claim_generator_info": [{"name": "promptmill", "version": version}],
        "title": f"{row['sample_id']}.{row['format']}",
        "assertions": [
            {"label": "c2pa.actions", "data": {"actions": [created]}},
            {"label": DRAW_LABEL, "data": {name: row[name] for name in names if row.get(name) is not None}},
        ],
    }


def _read(certificate: Path, key: Path) -> tuple[bytes, bytes, str, str]:
    """The chain, the key, the algorithm that both are for, the signer's name."""
    from cryptography import x509  # which c2pa-python needs itself
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
    from cryptography.x509.oid import NameOID

    try:
        chain = x509.load_pem_x509_certificates(_bytes(certificate))
    except ValueError:
        raise ExportError(f"{certificate}: is no PEM file of certificates; give the signer's first, then those that vouch for it") from None
    try:
        private = load_pem_private_key(_bytes(key), password=None)
    except TypeError:
        raise ExportError(
            f"{key}: is encrypted; give one without passphrase, as 'openssl pkey -in {key} -out plain.pem' makes it"
        ) from None
    except ValueError:
        raise ExportError(f"{key}: is no private key in PEM format") from None
    public = chain[0].public_key()
    if private.public_key() != public:
        raise ExportError(f"{key}: is not the key of the first certificate in {certificate}")
    match public:
        case ec.EllipticCurvePublicKey() if public.curve.name in _CURVES:
            algorithm = _CURVES[public.curve.name]
        case ed25519.Ed25519PublicKey():
            algorithm = "ed25519"
        case rsa.RSAPublicKey():
            algorithm = "ps256"
        case _:
            raise ExportError(f"{certificate}: C2PA has no such keys; use one on P-256, P-384, P-521, Ed25519, or RSA")
    subject = chain[0].subject
    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME) or subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return b"".join(one.public_bytes(Encoding.PEM) for one in chain), pem, algorithm, str(names[0].value) if names else "(no name)"


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
