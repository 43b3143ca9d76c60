"""``promptmill export --provenance --c2pa``: manifests that C2PA's own reader finds valid, by a certificate that is made here."""

import datetime
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

from jobs.cli import cli
from jobs.export import export
from jobs.export.credentials import DRAW_LABEL, Credentials
from jobs.export.provenance import SOURCE_TYPES, embed
from pipeline.encode import encode
from schemas.config import OutputConfig
from schemas.errors import ExportError
from tests.jobs.test_provenance import ROW, read
from tests.runs import finished_run

c2pa = pytest.importorskip("c2pa")
FROM = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
SIGNER = "Tests & Daughters"
KEYS = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
}


def certificate(subject: str, key: Any, issuer: str, issuer_key: Any, *, days: int = 36_500) -> x509.Certificate:
    """Of an authority if it is its own issuer, else one to sign content with."""
    ca, purpose = subject == issuer, ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    usage = dict.fromkeys([*purpose, "encipher_only", "decipher_only", "key_cert_sign", "crl_sign"], False)
    usage |= {"key_cert_sign": True} if ca else {"digital_signature": True}
    builder = x509.CertificateBuilder(
        issuer_name=name(issuer), subject_name=name(subject), public_key=key.public_key(), serial_number=x509.random_serial_number()
    )
    builder = builder.not_valid_before(FROM).not_valid_after(FROM + datetime.timedelta(days=days))
    builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True).add_extension(x509.KeyUsage(**usage), critical=True)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    if not ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tests"), x509.NameAttribute(NameOID.COMMON_NAME, common)])


def files(folder: Path, kind: str = "P-256", *, days: int = 36_500) -> tuple[Path, Path]:
    """A chain of two certificates, and the key of the first."""
    authority, key = KEYS["P-256"](), KEYS[kind]()
    chain = [certificate(SIGNER, key, "Authority", authority, days=days), certificate("Authority", authority, "Authority", authority)]
    paths = folder / f"{kind}.pem", folder / f"{kind}.key"
    paths[0].write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in chain))
    paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return paths


def manifest_of(data: bytes, form: str) -> tuple[dict[str, Any], list[str]]:
    """The active manifest, and what its reader finds wrong besides that nobody told it to trust the signer."""
    with c2pa.Reader(f"image/{form}", io.BytesIO(data)) as reader:
        store, failures = json.loads(reader.json()), reader.get_validation_results()["activeManifest"]["failure"]
    wrong = [one["code"] for one in failures if one["code"] != "signingCredential.untrusted"]
    return store["manifests"][store["active_manifest"]], wrong


@pytest.mark.parametrize(("form", "kind"), [("png", "P-256"), ("jpeg", "P-384"), ("webp", "Ed25519"), ("webp", "RSA")])
def test_each_format_and_kind_of_key_makes_a_valid_manifest_that_keeps_pixels_and_xmp(form: str, kind: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    plain = encode(pixels, OutputConfig.model_validate({"image_format": form})).data
    row = ROW | {"format": form}
    signed = Credentials(*files(tmp_path, kind), version="1.2").sign(embed(plain, row, version="1.2"), row)
    manifest, wrong = manifest_of(signed, form)
    assert wrong == []
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(plain))), np.asarray(Image.open(io.BytesIO(signed))))
    assert read(signed) == read(embed(plain, row, version="1.2"))
    said = {one["label"].removesuffix(".v2"): one["data"] for one in manifest["assertions"]}
    [action] = said["c2pa.actions"]["actions"]
    assert (action["action"], action["digitalSourceType"]) == ("c2pa.created", SOURCE_TYPES + "trainedAlgorithmicMedia")
    assert said[DRAW_LABEL] == {key: value for key, value in ROW.items() if value is not None}
    assert (manifest["claim_generator_info"][0]["name"], manifest["title"]) == ("promptmill", f"{ROW['sample_id']}.{form}")
    assert manifest["signature_info"]["common_name"] == SIGNER
    assert "thumbnail" not in manifest


def test_a_file_that_was_changed_after_it_was_signed_is_found_out(tmp_path: Path) -> None:
    row = ROW | {"format": "png"}
    data = encode(np.zeros((8, 8, 3), np.uint8), OutputConfig(image_format="png")).data
    signed = bytearray(Credentials(*files(tmp_path), version="1").sign(data, row))
    signed[-20] ^= 1
    assert "assertion.dataHash.mismatch" in manifest_of(bytes(signed), "png")[1]


def test_every_image_of_an_export_is_signed_and_the_card_says_by_whom(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run").store.root
    keys = [str(path) for path in files(tmp_path)]
    arguments = ["export", run, str(tmp_path / "out"), "--format", "imagefolder", "--c2pa", *keys]
    assert "--c2pa signs what --provenance says" in CliRunner().invoke(cli, arguments).output
    result = CliRunner().invoke(cli, [*arguments, "--provenance"])
    assert result.exit_code == 0, result.output
    images = list((tmp_path / "out").rglob("*.webp"))
    assert len(images) > 5
    for path in images:
        manifest, wrong = manifest_of(path.read_bytes(), "webp")
        assert (wrong, manifest["title"]) == ([], path.name)
    assert "signed by Tests &amp; Daughters" in (tmp_path / "out" / "README.md").read_text()


def test_a_signed_export_that_was_stopped_goes_on_with_the_same_certificate_and_begins_anew_with_another(tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    run = finished_run(tmp_path / "run").store.root
    (tmp_path / "other").mkdir()
    mine, others = files(tmp_path), files(tmp_path / "other")
    for keys, parts in ((mine, 1), (others, 0)):
        target, told = tmp_path / f"out{parts}", []
        with pytest.raises(KeyboardInterrupt):
            export(run, target, form="imagefolder", c2pa=mine, shard_bytes=8_000, on_count=stop)
        export(run, target, form="imagefolder", c2pa=keys, shard_bytes=8_000, on_message=told.append)
        assert len(told) == parts
        manifests = [manifest_of(path.read_bytes(), "webp") for path in target.rglob("*.webp")]
        assert [wrong for _, wrong in manifests if wrong] == []
        assert len({manifest["signature_info"]["cert_serial_number"] for manifest, _ in manifests}) == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda cert, key: cert.unlink(), r"pem: cannot be read: No such file"),
        (lambda cert, key: key.unlink(), r"key: cannot be read: No such file"),
        (lambda cert, key: cert.write_text("junk"), "pem: is no PEM file of certificates"),
        (lambda cert, key: key.write_text("junk"), "key: is no private key in PEM format"),
        (lambda cert, key: key.write_bytes(pem(KEYS["P-256"]())), r"P-256\.key: is not the key of the first certificate in .*P-256\.pem"),
        (lambda cert, key: key.write_bytes(pem(KEYS["P-256"](), b"secret")), "is encrypted; give one without passphrase"),
        (lambda cert, key: files(cert.parent, days=30), r"P-256\.pem: cannot sign: .*not valid at time of signing"),
        (lambda cert, key: self_signed(cert, key), r"P-256\.pem: cannot sign: .*; use one that is valid and meant for signing content"),
        (lambda cert, key: other_curve(cert, key), "C2PA has no such keys; use one on P-256"),
    ],
)
def test_a_certificate_and_key_that_cannot_sign_are_told_before_anything_is_written(spoil: Any, message: str, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    paths = files(tmp_path)
    spoil(*paths)
    with pytest.raises(ExportError, match=message) as caught:
        export(run.store.root, tmp_path / "out", form="hf", c2pa=paths)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob(".*")) + list(tmp_path.glob("out"))


def pem(key: Any, passphrase: bytes | None = None) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase) if passphrase else NoEncryption())


def self_signed(cert: Path, key: Path) -> None:
    """As ``openssl req -x509`` makes one: an authority's, which must not sign content."""
    own = KEYS["P-256"]()
    cert.write_bytes(certificate("me", own, "me", own).public_bytes(Encoding.PEM))
    key.write_bytes(pem(own))


def other_curve(cert: Path, key: Path) -> None:
    for path, place in zip(files(cert.parent, "secp256k1"), (cert, key), strict=True):
        path.rename(place)


def test_a_file_that_cannot_carry_a_manifest_is_told(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="bmp files cannot carry a manifest; export without it"):
        Credentials(*files(tmp_path), version="1").sign(b"BM", ROW | {"format": "bmp"})
