"""A process of a job, as torchrun starts them: rank, number of processes. They meet at MASTER_ADDR:MASTER_PORT, and go
from step to step together. Rank 0 ends the job when its input ends."""

import os
import select
import socket
import sys

rank, world = int(sys.argv[1]), int(sys.argv[2])
master = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])

# A port of its own, as NCCL and Gloo have: the second of the block, on every host.
own = socket.create_server(("0.0.0.0", master[1] + 1))
if rank == 0:
    server = socket.create_server(("0.0.0.0", master[1]))
    peers = {}
    while len(peers) < world - 1:
        peer = server.accept()[0].makefile("rw")
        peers[int(peer.readline())] = peer
    assert sorted(peers) == list(range(1, world)), peers
    step, over = 0, False
    while not over:
        over = bool(select.select([sys.stdin], [], [], 0.05)[0])
        step += 1
        for peer in peers.values():
            print("end" if over else step, file=peer, flush=True)
        for number, peer in peers.items():
            assert peer.readline() == f"{step}\n", number
        print("step", step, flush=True)
else:
    while True:
        try:
            peer = socket.create_connection(master).makefile("rw")
            break
        except ConnectionRefusedError:
            pass
    print(rank, file=peer, flush=True)
    step, over = 0, False
    while not over:
        step += 1
        over = peer.readline() == "end\n"
        print(step, file=peer, flush=True)
