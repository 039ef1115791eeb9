"""Who may ask: tokens, TLS, certificates of clients; and what nobody is told."""

from __future__ import annotations

import hashlib
import http.client
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from served import Running

from reskit.errors import ConfigError
from reskit.serving.security import Tokens, check_tls
from reskit.serving.settings import Settings

TOKEN = "an-example-token"


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    lines = ["# clients", "", f"{hashlib.sha256(b'other').hexdigest()}  other"]
    lines.append(f"{hashlib.sha256(TOKEN.encode()).hexdigest()}  -")
    path = tmp_path / "tokens"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and certificates of a server and a client that it signed."""
    folder = tmp_path_factory.mktemp("pems")

    def openssl(*arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], cwd=folder, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        "req", "-x509", *curve, "-days", 9, "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem"
    )
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    for name in ("server", "client"):
        openssl("req", *curve, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-days", 9, "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
    return folder


def test_a_token_is_needed_where_one_is_asked_for(
    running: Callable[..., Running], client: Callable[..., Any], bundle: Path, token_file: Path
) -> None:
    server = running([("digits", bundle)], token_file=token_file)
    one = {"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "UINT8", "data": [0] * 64}]}
    paths = [
        ("GET", "/v2"),
        ("GET", "/metrics"),
        ("POST", "/v2/models/digits/infer"),
        ("POST", "/v1/predict"),
    ]
    wrong = [None, "", "Bearer", f"Basic {TOKEN}", "Bearer other2", f"Bearer {TOKEN}x", TOKEN, "Bearer \xe9"]
    for method, path in paths:
        for given in wrong:
            reply = server.ask(method, path, one, {} if given is None else {"Authorization": given})
            assert reply.status == 401
            assert reply.headers["www-authenticate"] == "Bearer"
            assert reply.json["error"]
    good = {"Authorization": f"Bearer {TOKEN}"}
    assert server.ask("POST", "/v2/models/digits/infer", one, good).status == 200
    assert server.ask("GET", "/v2", None, {"Authorization": "bearer other"}).status == 200
    assert server.get("/v2/health/ready").status == 200
    said = client("grpc_secured", server.server.urls["grpc"], TOKEN)
    assert said == {
        "live": True,
        "health": 1,
        "no token": "UNAUTHENTICATED",
        "wrong token": "UNAUTHENTICATED",
        "stream": "UNAUTHENTICATED",
        "token": "digits",
    }


def test_the_file_holds_hashes_and_is_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    for text, words in ((TOKEN, "not the SHA-256"), ("\n# only words\n", "holds no hash")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=words) as refused:
            Tokens.read(path)
        assert TOKEN not in str(refused.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        Tokens.read(tmp_path / "missing")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        Tokens.read(path)


def test_every_hash_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    monkeypatch.setattr(
        "reskit.serving.security.hmac.compare_digest", lambda a, b: compared.append(b) or a == b
    )
    hashes = [hashlib.sha256(name).digest() for name in (b"a", b"b", b"c")]
    Tokens(hashes).check("Bearer a")
    assert compared == hashes


def test_tls_and_certificates_of_clients(
    running: Callable[..., Running], client: Callable[..., Any], bundle: Path, pems: Path
) -> None:
    server = running(
        [("digits", bundle)],
        tls_cert=pems / "server.pem",
        tls_key=pems / "server.key",
        tls_client_ca=pems / "ca.pem",
    )
    assert server.server.urls["rest"].startswith("https://")
    context = ssl.create_default_context(cafile=pems / "ca.pem")

    def get() -> int:
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, context=context, timeout=10)
        connection.request("GET", "/v2/health/ready")
        status = connection.getresponse().status
        connection.close()
        return status

    with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
        get()
    context.load_cert_chain(pems / "client.pem", pems / "client.key")
    assert get() == 200
    said = client("grpc_secured", server.server.urls["grpc"], "-", pems)
    assert said == {"without certificate": "UNAVAILABLE", "with certificate": "digits"}


def test_wrong_settings_are_refused_before_anything_is_loaded(pems: Path, tmp_path: Path) -> None:
    cert, key = pems / "server.pem", pems / "server.key"
    for values in (
        {"tls_cert": cert},
        {"tls_key": key},
        {"tls_client_ca": cert},
        {"port": 70_000},
        {"queue": 0},
    ):
        with pytest.raises(ConfigError):
            Settings.of(values)
    for wrong in (tmp_path / "missing.pem", pems / "client.key"):
        with pytest.raises(ConfigError, match="TLS cannot be set up"):
            check_tls(Settings.of({"tls_cert": cert, "tls_key": wrong}))


def test_only_this_machine_is_listened_to_unless_told(shared: Running) -> None:
    ports = {shared.port, int(shared.server.urls["grpc"].rpartition(":")[2])}
    sockets = [item for item in psutil.Process().net_connections("inet") if item.status == "LISTEN"]
    places = [item.laddr.ip.removeprefix("::ffff:") for item in sockets if item.laddr.port in ports]
    assert places == ["127.0.0.1"] * 2


def test_a_port_that_is_taken_is_said(shared: Running, bundle: Path) -> None:
    grpc_port = int(shared.server.urls["grpc"].rpartition(":")[2])
    for settings in ({"port": shared.port, "grpc_port": None}, {"grpc_port": grpc_port}):
        with pytest.raises(ConfigError, match="cannot listen at 127"):
            Running([("digits", bundle)], **settings)
