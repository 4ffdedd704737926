"""Managed: tries an address without a rule over and over; says what got through when it is told to end, or after a minute."""

import os, socket, sys, time

began, tried, through = time.monotonic(), 0, []
while not os.path.exists("/run/enough") and time.monotonic() < began + 60:
    one = socket.socket()
    one.settimeout(2)
    tried += 1
    try:
        one.connect((sys.argv[1], int(sys.argv[2])))
        through.append(round(time.monotonic() - began, 2))
    except OSError:
        pass
    one.close()
    if tried == 100:
        print("begun", flush=True)
    time.sleep(0.001)
print("through", len(through), through[:5], flush=True)
