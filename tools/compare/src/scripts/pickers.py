"""The pickers from PyPI, each used as its documentation says.

Speaks the protocol of `allocator.rs` on its standard input and output:
`get N`, `hand`, `free`, `time ITERATIONS N`.
"""

import os
import sys
import time

which = sys.argv[1]
has_server = which in ("portserver", "portkeep-server")
if which == "ephemeral-port-reserve":
    from ephemeral_port_reserve import reserve as pick

    def give_back(port):
        """There is nothing to give back: TIME_WAIT ends by itself."""

else:
    # A port server requires only PORTSERVER_ADDRESS in the environment.
    from portpicker import pick_unused_port as pick, return_port as give_back


def cycle(count):
    ports = [pick() for _ in range(count)]
    # With a server a returned port stays in this process, and the next pick would not ask the server. As most of its
    # users do, keep it until the process ends.
    if not has_server:
        for port in ports:
            give_back(port)


def say(*words):
    print(*words, flush=True)


if has_server:
    # The messages of portpicker after its server was killed are known; its answers show what it does then.
    sys.stderr = open(os.devnull, "w")
held = []
say("ready")
for line in sys.stdin:
    command, *numbers = line.split()
    numbers = [int(number) for number in numbers]
    try:
        if command == "get":
            held = [pick() for _ in range(numbers[0])]
            say(os.getpid(), *held)
        elif command == "hand":
            say("ok")
        elif command == "free":
            for port in held:
                give_back(port)
            held = []
            say("ok")
        elif command == "time":
            begun = time.perf_counter_ns()
            for _ in range(numbers[0]):
                cycle(numbers[1])
            say(time.perf_counter_ns() - begun)
    except Exception as error:  # Errors of the peer are part of the result.
        say("none", repr(error))
