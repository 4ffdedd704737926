"""Holds many answers at once, each on a connection of its own; prints one JSON line when all have begun, one for the end
of each.

Arguments: host, path, how many."""
import http.client, json, ssl, sys, threading

host, path, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
context = ssl.create_default_context()
lock, begun = threading.Lock(), threading.Barrier(count + 1)


def say(**words):
    with lock:
        print(json.dumps(words), flush=True)


def run(number):
    status, length, error = 0, 0, ""
    try:
        connection = http.client.HTTPSConnection(host, timeout=30, context=context)
        connection.request("GET", f"{path}{number}")
        answer = connection.getresponse()
        status = answer.status
        length = len(answer.read(1))
        begun.wait(30)
        length += len(answer.read())
    except Exception as failure:
        begun.abort()
        error = repr(failure)
    say(status=status, length=length, error=error)


threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
for thread in threads:
    thread.start()
try:
    begun.wait(30)
    say(begun=count)
except threading.BrokenBarrierError:
    pass
for thread in threads:
    thread.join()
