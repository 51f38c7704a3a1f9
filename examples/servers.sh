#!/bin/sh
# Two servers on reserved ports, in shell: ./servers.sh DIRECTORY
# They find their ports in PORT0 and PORT1, and nobody else gets the ports while one of them runs.
cd "${1:-.}" || exit
exec portkeep run --count 2 --label files -- sh -c '
    python3 -m http.server --bind 127.0.0.1 "$PORT1" 2>/dev/null &
    echo "listening on port $PORT0 and $PORT1"
    exec python3 -m http.server --bind 127.0.0.1 "$PORT0" 2>/dev/null'
