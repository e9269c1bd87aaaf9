"""
One of several processes that ask at once: `python -m tests.quotas.worker URI REQUESTS`

Says that it is ready, waits for a line, and prints how many of its requests were admitted and how many refused.
"""

import asyncio
import sys

from aisbreaker_mw.quotas import QuotaLimiter

from .model import bucket


async def main(uri: str, count: int) -> None:
    limiter = QuotaLimiter(uri, timeout=10)
    server = bucket("server", minute=100_000)
    token = bucket("token", minute=100, hour=1_000)
    clients = [bucket(f"token:{i}", minute=100, day=500) for i in range(7)]
    print("ready", flush=True)
    sys.stdin.readline()
    decisions = await asyncio.gather(*[limiter.consume([server, token, clients[i % 7]]) for i in range(count)])
    passed = sum(decision is not None and decision.admitted for decision in decisions)
    print(passed, count - passed, flush=True)
    await limiter.aclose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
