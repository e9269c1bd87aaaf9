"""
How many POSTs fail where the upstream closes each connection right after its response: `python benchmarks/keepalive.py`

The upstream does not announce it with `Connection: close`. A POST's body must not be sent twice, so each request that meets a
connection that is just being closed is a 502. Runs `aisbreaker serve`, and prints the responses by status.
"""

import argparse
import asyncio
import multiprocessing
import os
import socket
import subprocess
import sys
from collections import Counter

from processes import free_port, wait_for_port

RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BODY = b"x" * 100
REQUEST = (
    b"POST /openai/v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer sk-own\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)


async def _answer_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(len(BODY))
        writer.write(RESPONSE)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    writer.close()


def _run_upstream(listener: socket.socket) -> None:
    async def serve() -> None:
        await (await asyncio.start_server(_answer_and_close, sock=listener)).serve_forever()

    asyncio.run(serve())


async def _post(port: int, requests: int, outcomes: Counter[str]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(requests):
        writer.write(REQUEST)
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
        outcomes[head.split(b" ")[1].decode()] += 1
    writer.close()


async def _measure(port: int, requests: int, clients: int) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    async with asyncio.timeout(300):
        await asyncio.gather(*(_post(port, requests // clients, outcomes) for _ in range(clients)))
    return outcomes


def main() -> None:
    """Measure, and print the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=16, help="clients at once, each with one request after the other")
    arguments = parser.parse_args()
    port = free_port()
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        upstream = multiprocessing.get_context("fork").Process(target=_run_upstream, args=(listener,), daemon=True)
        upstream.start()
        environment = {
            **os.environ,
            "AISBREAKER_FOREIGN_CREDENTIALS": "forward",
            "AISBREAKER_LOG_LEVEL": "WARNING",
            "AISBREAKER_SERVICES__OPENAI__BASE_URL": f"http://127.0.0.1:{listener.getsockname()[1]}",
        }
        command = [sys.executable, "-m", "aisbreaker_mw", "serve", "--port", str(port)]
        server = subprocess.Popen(command, env=environment)
        try:
            wait_for_port(port)
            outcomes = asyncio.run(_measure(port, arguments.requests, arguments.clients))
        finally:
            for process in (server, upstream):
                process.terminate()
            server.wait(30)
            upstream.join()
    print(", ".join(f"{count} x {status}" for status, count in outcomes.most_common()))


if __name__ == "__main__":
    main()
