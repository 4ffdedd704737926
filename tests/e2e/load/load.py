"""Calls without a pause until standard input ends; prints one JSON line a call. Never tries again.

Arguments: host, number of clients that keep their connection, number of those that make one for each call."""
import http.client, json, ssl, sys, threading

host, kept, fresh = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
context = ssl.create_default_context()
stop, lock = threading.Event(), threading.Lock()


def say(**words):
    with lock:
        print(json.dumps(words), flush=True)


def run(name, keep):
    connection, turn = None, 0
    while not stop.is_set():
        path = f"/load/{name}/{turn}"
        turn += 1
        try:
            if connection is None:
                connection = http.client.HTTPSConnection(host, timeout=15, context=context)
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            say(path=path, status=answer.status)
        except Exception as error:
            say(path=path, status=0, error=repr(error))
            keep_it = False
        else:
            keep_it = keep
        if not keep_it:
            connection.close()
            connection = None


threads = [threading.Thread(target=run, args=(f"kept{i}", True)) for i in range(kept)]
threads += [threading.Thread(target=run, args=(f"fresh{i}", False)) for i in range(fresh)]
for thread in threads:
    thread.start()
sys.stdin.read()
stop.set()
for thread in threads:
    thread.join()
