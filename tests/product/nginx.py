"""nginx in front of a server, configured as `docs/security.md` shows."""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ..ports import free_port
from ..support import connect, wait_until

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
"""Path of nginx, or None. Debian has it in a directory that only root's PATH names."""
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "security.md"
_MAIN = """
daemon off;
master_process off;
error_log stderr crit;
pid {directory}/nginx.pid;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    {http}
    {documented}
}}
"""


def documented_servers(port: int, base: str, more: str) -> str:
    """
    Return the servers of the documentation, without TLS.

    Args:
        port: port to listen on.
        base: base URL of the server behind.
        more: directives to add to the server with a name.
    """
    (text,) = re.findall(r"```nginx\n(.*?)```", DOCUMENTATION.read_text("utf-8"), re.DOTALL)
    for pattern, new in (
        (r"^ +ssl_.*\n", ""),
        (r"listen 443 ssl", f"listen 127.0.0.1:{port}"),
        (r"http://127\.0\.0\.1:3000", base),
        (r"(server_name .*)", rf"\1\n{more}"),
    ):
        text, count = re.subn(pattern, lambda found, new=new: found.expand(new), text, flags=re.MULTILINE)
        assert count, pattern
    return text


@contextlib.contextmanager
def nginx(directory: Path, base: str, *, http: str = "", more: str = "") -> Iterator[str]:
    """
    Run nginx as the documentation shows; gives its base URL.

    Args:
        directory: an empty directory.
        base: base URL of the server behind.
        http: directives to add to all servers.
        more: directives to add to the server with a name.
    """
    assert NGINX is not None
    port = free_port()
    config = directory / "nginx.conf"
    config.write_text(_MAIN.format(directory=directory, http=http, documented=documented_servers(port, base, more)))
    process = subprocess.Popen([NGINX, "-p", directory, "-e", "stderr", "-c", config], stderr=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}"

    def up() -> bool:
        assert process.poll() is None, f"nginx ended: {process.communicate()[1]}"
        connect(url).close()
        return True

    try:
        wait_until(up, "nginx's start", 20, (OSError,))
        yield url
    finally:
        process.terminate()
        process.communicate(timeout=20)
