"""`talk.py URL` sends two words over a WebSocket and prints what comes back for each."""
import asyncio, sys
import websockets


async def talk():
    async with websockets.connect(sys.argv[1]) as socket:
        for word in ("one", "two"):
            await socket.send(word)
            print("echoed:", await socket.recv())


asyncio.run(talk())
