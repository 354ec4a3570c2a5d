"""A server on this machine that plays the hosts of released weights: a plain one and Google Drive.

Only 127.0.0.1 is listened on, and `hosts()` ends the server with the `with` block.
"""
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

# What Drive shows instead of a large file, reduced to what a client needs.
_CONFIRMATION = '''<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head>
<body><p class="uc-warning-caption">Google Drive can't scan this file for viruses.</p>
'''
# On one line, as Drive writes it.
_FORM = (
    '<form id="download-form" action="https://drive.usercontent.google.com/download" '
    'method="get"><input type="submit" id="uc-download-link" value="Download anyway"/>'
    '<input type="hidden" name="id" value="{id}">'
    '<input type="hidden" name="export" value="download">'
    '<input type="hidden" name="confirm" value="t">'
    '<input type="hidden" name="uuid" value="some-uuid"></form>')
_QUOTA = '''<html><body><p class="uc-error-caption">Sorry, you can't view or download this file.</p>
<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p>
</body></html>'''


@dataclass
class Hosts:
    """What the server has and does, and what it was asked for.

    files: content by name, or by Drive id. cut_after: the next responses end after so many bytes,
    one number each. quota: Drive refuses. requests: path and Range of each request for a file.
    """

    port: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    cut_after: list[int] = field(default_factory=list)
    quota: bool = False
    resumable: bool = True
    requests: list[tuple[str, str]] = field(default_factory=list)

    def url(self, path: str) -> str:
        return f'http://127.0.0.1:{self.port}/{path}'


@contextmanager
def hosts() -> Iterator[Hosts]:
    """The server, running: `/NAME`, `/redirect/NAME`, and Drive's `/uc` and `/download`."""
    state = Hosts()

    class Handler(BaseHTTPRequestHandler):

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            if parts.path.startswith('/redirect/'):
                self.reply(302, Location=parts.path.removeprefix('/redirect'))
            elif parts.path == '/uc':  # of drive.google.com
                page = _QUOTA if state.quota else _CONFIRMATION + _FORM.format(id=query['id'])
                self.reply(200, page.encode(), Content_Type='text/html; charset=utf-8')
            elif parts.path == '/download':  # of drive.usercontent.google.com
                assert query['confirm'] == 't'
                self.send_file(
                    query['id'], Content_Disposition='attachment; filename="theirs.pth"')
            else:
                self.send_file(parts.path.removeprefix('/'))

        def send_file(self, name: str, **headers: str) -> None:
            state.requests.append((name, self.headers.get('Range', '')))
            content = state.files.get(name)
            if content is None:
                self.reply(404)
                return
            tag = f'"{sha256(content).hexdigest()}"'
            start, asked = 0, self.headers.get('Range')
            if asked and state.resumable and self.headers.get('If-Range', tag) == tag:
                start = int(asked.removeprefix('bytes=').removesuffix('-'))
                headers['Content_Range'] = f'bytes {start}-{len(content) - 1}/{len(content)}'
            self.reply(206 if start else 200, content[start:], ETag=tag,
                       Content_Type='application/octet-stream', **headers)

        def reply(self, status: int, content: bytes = b'', **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace('_', '-'), value)
            self.send_header('Content-Length', str(len(content)))
            self.end_headers()
            is_file = headers.get('ETag') is not None
            try:
                if is_file and state.cut_after:
                    self.wfile.write(content[:state.cut_after.pop(0)])
                    self.wfile.flush()
                    self.connection.shutdown(socket.SHUT_RDWR)
                else:
                    self.wfile.write(content)
            except OSError:  # the client has read the headers and closed
                pass

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        server.daemon_threads = True
        state.port = server.server_port
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield state
        server.shutdown()
