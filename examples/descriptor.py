"""Starts a program with a listening socket that it inherits: python3 descriptor.py node server.js"""

import os
import subprocess
import sys

import portkeep

with portkeep.reserve(label="hello") as reservation:
    server = reservation.bind_tcp()
    descriptor = server.fileno()
    environment = {**os.environ, "LISTEN_FD": str(descriptor)}
    subprocess.run(sys.argv[1:], env=environment, pass_fds=[descriptor])
