"""`call.py LIBRARY URL` prints the answer's body; without a URL, with requests, that of each line that it is told."""
import sys

library, url = [*sys.argv[1:], None][:2]
if library == "urllib":
    import urllib.request

    print(urllib.request.urlopen(url, timeout=20).read().decode())
elif library == "requests":
    import requests

    for one in [url] if url else map(str.strip, sys.stdin):
        print(requests.get(one, timeout=20).text, flush=True)
elif library == "httpx":
    import httpx

    with httpx.Client(http2=True, timeout=20) as client:
        print(client.get(url).text)
elif library == "aiohttp":
    import asyncio, aiohttp

    async def call():
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            print(await answer.text())

    asyncio.run(call())
