"""WebSockets through `aisbreaker serve`."""

import asyncio
import json
import re
import signal
import subprocess

from ...support import KEY, WAIT, mint, serve_process
from .support import REALTIME, SECRET, URL, Service, closing, opening, refused


async def test_the_standalone_server(echoing: Service) -> None:
    environment = {"AISBREAKER_KEY": KEY, "AISBREAKER_SERVICES__OPENAI__BASE_URL": URL, "AISBREAKER_LOG_FORMAT": "json"}
    with serve_process(stderr=subprocess.PIPE, **environment) as (base, process):
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
