"""Real S3 servers on the loopback interface, and a proxy that breaks their answers.

moto is the default; SeaweedFS is a second engine; rclone ignores conditional writes.
"""

import contextlib
import dataclasses
import http.client
import http.server
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

KEYS = ("avtd3-test-key", "avtd3-test-secret")
"""What tests search files and texts for."""


@dataclasses.dataclass
class Server:
    """A running server."""

    endpoint: str

    @property
    def environment(self):
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEYS[0],
            "AWS_SECRET_ACCESS_KEY": KEYS[1],
            "AWS_REGION": "us-east-1",
        }


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def running(command, port, log, path="/"):
    """Run a server until the end of the block; wait until it answers."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline_s = time.monotonic() + 120.0
        while not answers(f"http://127.0.0.1:{port}{path}"):
            assert process.poll() is None, log.read_text(errors="replace")[-2000:]
            assert time.monotonic() < deadline_s, log.read_text(errors="replace")[-2000:]
            time.sleep(0.05)
        yield Server(f"http://127.0.0.1:{port}")
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


def start_moto(folder):
    pytest.importorskip("moto", reason="needs moto")
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1"]
    return running([*command, "-p", str(port)], port, folder / "moto.log", "/moto-api/")


def start_rclone(folder):
    program = find_program("rclone")
    port, data = free_port(), folder / "rclone"
    (data / "bucket").mkdir(parents=True)
    command = [program, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--config", "/dev/null"]
    command += ["--auth-key", ",".join(KEYS), str(data)]
    return running(command, port, folder / "rclone.log")


def start_weed(folder):
    program = find_program("weed")
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    (folder / "weed").mkdir(exist_ok=True)
    rights: dict[str, Any] = {
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        "name": "test",
    }
    rights["credentials"] = [dict(zip(("accessKey", "secretKey"), KEYS, strict=True))]
    (folder / "s3.json").write_text(json.dumps({"identities": [rights]}))
    command = [program, "server", f"-dir={folder}/weed", "-s3", f"-s3.config={folder}/s3.json"]
    command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.volumeSizeLimitMB=64"]
    command += ["-volume.max=100"]
    command += [f"-{name}.port={port}" for name, port in ports.items()]
    command += [f"-{name}.port.grpc={free_port()}" for name in ports]
    # Two catalogues that nobody asks for, whose fixed ports allow one instance on a machine.
    command += [f"-s3.port.{name}=0" for name in ("iceberg", "lance")]
    return running(command, ports["s3"], folder / "weed.log")


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
    work; ``half`` cuts the answer in half; ``slow`` sends it in pieces. `lag_s` hides objects from
    listings that were put less than so many seconds ago. `requests` and `size_bytes` count.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, server):
        self.upstream = server.endpoint.removeprefix("http://")
        self.fault: Fault = lambda method, path: ""
        self.lag_s, self.put_at, self.requests, self.is_cut = 0.0, {}, [], False
        self.size_bytes = 0
        super().__init__(("127.0.0.1", 0), Forward)
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

    def forward(self):
        proxy: Any = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = "before" if proxy.is_cut else proxy.fault(self.command, self.path)
        proxy.requests.append((self.command, self.path))
        self.close_connection = fault not in ("", "slow")
        if fault == "before":
            return
        if fault == "503":
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        upstream = http.client.HTTPConnection(proxy.upstream, timeout=60.0)
        upstream.request(self.command, self.path, body, dict(self.headers))
        answer = upstream.getresponse()
        data = proxy.hide_recent(self.path, answer.read())
        upstream.close()
        proxy.size_bytes += len(body) + len(data)
        if self.command == "PUT":
            key = self.path.partition("?")[0].strip("/").partition("/")[2]
            proxy.put_at[key] = time.monotonic()
        if fault == "after":
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
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
