# Services that let the kernel choose their ports, with private ephemeral ranges (media.toml), behind a rule set that opens these
# and no other port (firewall.nft). The client is in another network namespace.

client() { timeout 60 nsenter --net=/run/netns/client "$@"; }

# One file, by a passive transfer. Prints the port.
ftp_transfer() {
	client bash -c '
		say() { printf "%s\r\n" "$1" >&3; read -r line <&3; }
		exec 3<>/dev/tcp/10.8.0.1/21 && read -r line <&3
		say "USER anonymous"; say "PASS guest"; say "TYPE I"; say EPSV
		port=${line##*|||} port=${port%%|*}
		exec 4<>/dev/tcp/10.8.0.1/"$port"
		say "RETR file"; read -r text <&4
		[ "$text" = hello ] && echo "$port" || { echo "$line $port"; false; }'
}

inside() { [ "$1" -ge "$2" ] && [ "$1" -le "$3" ]; }

firewalled() {
	local failed= port ports server status
	modprobe -a veth nf_tables nft_ct || failed+=' modules'
	mkdir -p /srv/ftp && echo hello >/srv/ftp/file
	timeout 100 systemctl start ftpd.service rpc-statd.service || failed+=' start'
	# Its sockets on loopback have ports that it chose itself.
	ports=$(ss -Hlntup | awk '/"rpc.statd"/ && $5 !~ /^127/ { sub(".*:", "", $5); print $5 }')
	[ "$(wc -w <<<"$ports")" = 4 ] || failed+=" statd has: $ports"
	for port in $ports; do inside "$port" 50200 50209 || failed+=" statd has $port"; done

	ip netns add client
	ip link add door type veth peer name eth0 netns client || failed+=' veth'
	ip address add 10.8.0.1/24 dev door && ip link set door up
	ip -n client address add 10.8.0.2/24 dev eth0 && ip -n client link set eth0 up
	/usr/lib/boot-test/hostile serve 50300 &
	server=$!
	soon client bash -c '[ "$(cat </dev/tcp/10.8.0.1/50300)" = plain ]' || failed+=' before the rules'
	timeout 60 nft --file /usr/lib/boot-test/firewall.nft || failed+=' nft'
	soon client bash -c 'exec 3<>/dev/tcp/10.8.0.1/21' || failed+=' no ftp'
	for _ in 1 2 3; do
		port=$(ftp_transfer) && inside "$port" 50000 50019 || failed+=" ftp: $port"
	done
	client rpcinfo -T tcp 10.8.0.1 status || failed+=' statd by TCP'
	client rpcinfo -T udp 10.8.0.1 status || failed+=' statd by UDP'
	[ "$(timeout 60 cat </dev/tcp/127.0.0.1/50300)" = plain ] || failed+=' the port outside'
	client timeout 5 bash -c 'cat </dev/tcp/10.8.0.1/50300'
	status=$?
	# Dropped, not refused.
	[ "$status" = 124 ] || failed+=" a client has the port outside: $status"

	timeout 60 nft delete table inet media
	kill "$server"
	ip netns delete client
	timeout 100 systemctl stop ftpd.service rpc-statd.service rpcbind.socket rpcbind.service
	echo "failed:$failed"
	[ -z "$failed" ]
}
