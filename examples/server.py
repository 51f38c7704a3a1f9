"""A server on a reserved port, in Python. Run it with: python3 server.py"""

import portkeep

with portkeep.reserve(2, label="hello") as reservation:
    server = reservation.bind_tcp()
    print("listening on port", server.getsockname()[1], flush=True)
    while True:
        connection, _ = server.accept()
        connection.sendall(b"hello\n")
        connection.close()
