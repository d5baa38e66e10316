"""A `biplane serve` of one's own, for the scripts beside this file."""
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request


class Server:
    """Runs `biplane serve -m MODEL OPTIONS…` until it is closed; `post` gives an answer's status and body."""

    def __init__(self, biplane, model, *options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.base = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen([biplane, "serve", "-m", model, "--port", str(port), *options])

    def __enter__(self):
        while self.get("/health")[0] != 200:
            if self.process.poll() is not None:
                raise SystemExit(f"the server ended with {self.process.returncode}")
            time.sleep(0.2)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def get(self, path):
        return self._ask(urllib.request.Request(self.base + path))

    def post(self, path, body):
        data = json.dumps(body).encode()
        return self._ask(urllib.request.Request(self.base + path, data, {"content-type": "application/json"}))

    def _ask(self, request):
        try:
            with urllib.request.urlopen(request) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except OSError as error:
            return 0, {"error": str(error)}
