"""Servers on this machine, good and bad; the fixture ``serve`` starts them."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Answers every request with ``answer(handler, content, start)``; keeps what was asked."""

    daemon_threads = True

    def __init__(self, answer, content):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.content = answer, content
        self.asked = []  # the path and the Range header of each request
        self.end = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.headers["Range"]
        self.server.asked.append((self.path, asked))
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        self.server.answer(self, self.server.content, start)

    def reply(self, status, body, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_):
        pass


def whole(handler, content, start):
    handler.reply(200, content, Content_Length=len(content))


def half(handler, content, start):
    handler.reply(200, content[: len(content) // 2], Content_Length=len(content))


def wrong(handler, content, start):
    whole(handler, content[:-9] + b"\0" * 9, start)


def not_found(handler, content, start):
    handler.send_error(404)


@contextmanager
def running(answer, content):
    server = Server(answer, content)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.end.set()
    server.shutdown()
    server.server_close()
