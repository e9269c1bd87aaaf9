"""WebSockets through `aisbreaker serve`."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

from ...support import KEY, WAIT, mint
from .support import (
    REALTIME,
    SECRET,
    URL,
    Service,
    closing,
    opening,
    refused,
)


@contextlib.asynccontextmanager
async def standalone(url: str, **environment: str) -> AsyncIterator[tuple[str, subprocess.Popen[str]]]:
    environment = {"AISBREAKER_KEY": KEY, "AISBREAKER_SERVICES__OPENAI__BASE_URL": url, **environment}
    command = [sys.executable, "-m", "aisbreaker_mw", "serve", "--port", "0"]
    process = subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        told = await asyncio.to_thread(process.stderr.readline)
        base = re.search(r"listening on (http://127\.0\.0\.1:\d+)", told)
        assert base, told + process.communicate()[1]
        yield base[1], process
    finally:
        process.kill()
        await asyncio.to_thread(process.communicate)


async def test_the_standalone_server(echoing: Service) -> None:
    async with standalone(URL, AISBREAKER_LOG_FORMAT="json") as (base, process):
        token = mint(base, ("realtime:openai.com", SECRET))
        missing = await refused(base)
        assert (missing.status_code, missing.json()["error"]["code"]) == (401, "missing_credential")
        async with opening(base, f"{REALTIME}&key={token}", compression="deflate") as client:
            assert client.protocol.extensions == []
            assert client.response
            assert len(client.response.headers.get_all("Date")) == 1
            for message in ("hello", b"\x00" * 100_000):
                await client.send(message)
                assert await client.recv() == message
            await client.close(3001, "bye")
        assert await closing(echoing.last) == (3001, "bye")

        # A socket that is open does not hold the drain up, and is told.
        async with opening(base, token=token) as client:
            process.send_signal(signal.SIGTERM)
            assert (await closing(client))[0] == 1012
            assert (await closing(echoing.last))[0] == 1012
        assert await asyncio.to_thread(process.wait, WAIT) == 0
        assert process.stderr
        told = process.stderr.read()
    sockets = [json.loads(line) for line in told.splitlines() if '"status":101' in line]
    assert [(line["bytes"], line["complete"]) for line in sockets] == [(100_005, True), (0, True)]
    assert not re.search("SENTINEL|aisbreaker_ey|Traceback", told)
