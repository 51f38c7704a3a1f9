# The checks in the guest. Each boot does its part and goes on to the next; the host reads the console.
exec </dev/null >/var/log/boot-test 2>&1
set -u
state=/var/lib/boot-test
mkdir -p "$state"
boot=$(($(cat "$state/boots" 2>/dev/null || echo 0) + 1))
echo "$boot" >"$state/boots"
sync
case $(cat /proc/cmdline) in *boot_test=short*) short=yes ;; *) short= ;; esac
many=10 few=5
[ -n "$short" ] && many=3 few=2

# One line, in one write: the kernel writes there, too.
emit() { printf '@boot %s\n' "$1" >/dev/console; }
quoted() { printf '%s' "$1" | tail -c 600 | tr '\n\t"\\' "  ''" | tr -d '\000-\037'; }
note() { emit "{\"note\":\"boot $boot: $(quoted "$*")\"}"; }
next() {
	emit "{\"next\":\"$1\"}"
	[ "$1" = reboot ] && systemctl reboot
	exit
}
# A name and a command: it has to succeed.
check() {
	local name="boot $boot: $1" passed=true detail
	shift
	detail=$("$@" 2>&1) || passed=false
	emit "{\"check\":\"$(quoted "$name")\",\"passed\":$passed,\"detail\":\"$(quoted "$detail")\"}"
}

property() { systemctl show --value -p "$2" "$1"; }
not() { ! "$@"; }

# Within minutes, whatever the machine's speed.
soon() {
	for _ in $(seq 900); do
		"$@" >/dev/null 2>&1 && return
		sleep 0.2
	done
	"$@"
}

# The answer of the program that has the port.
http() {
	exec 3<>/dev/tcp/127.0.0.1/80 && printf 'HEAD / HTTP/1.0\r\n\r\n' >&3 && grep -q '^Server: nginx' <&3
}
redis() { [ "$(redis-cli -p 6379 ping)" = PONG ]; }
plain() { [ "$(cat </dev/tcp/127.0.0.1/853)" = plain ]; }

after_portkeep() {
	local ready began
	ready=$(property portkeep.service ActiveEnterTimestampMonotonic)
	began=$(property "$1" "$2")
	echo "$1 at $began us, Portkeep ready at $ready us"
	[ "$ready" -gt 0 ] && [ "$began" -gt "$ready" ]
}

# There were tries, and all of them were refused.
refused_always() {
	local tries refused odd
	soon test -s "/run/$1/tally" || return
	read -r tries refused odd <"/run/$1/tally"
	cat "/run/$1/tally"
	[ "$tries" -gt 0 ] && [ "$tries" = "$refused" ] && [ "$odd" = 0 ]
}
still_trying() {
	local before now
	read -r before _ <"/run/$1/tally"
	for _ in $(seq 100); do
		read -r now _ <"/run/$1/tally"
		[ "$now" -gt "$before" ] && return
		sleep 0.2
	done
	echo "$before tries and no more"
	false
}

outsider_refused() { setpriv --reuid outsider --clear-groups /usr/lib/boot-test/hostile try "$1"; }
root_refused() { /usr/lib/boot-test/hostile try "$1"; }

# Reservations in force, with their tokens.
in_force() { portkeep list --json | tr ',{}[]' '\n\n\n\n\n' | grep -E '"(token|ports|name)"' | sort; }

# A unit, how its server is asked, how often, and how it goes down.
restarts() {
	local unit=$1 answers=$2 times=$3 way=$4
	for number in $(seq "$times"); do
		case $way in
		stop) systemctl stop "$unit" ;;
		crash) systemctl kill -s KILL "$unit" && soon not systemctl -q is-active "$unit" ;;
		esac
		# The hostile programs get time for their tries, and systemd does not count the starts.
		sleep 0.5
		systemctl reset-failed "$unit"
		systemctl start "$unit" && soon "$answers" || {
			echo "number $number"
			systemctl status --no-pager "$unit"
			return 1
		}
	done
}

# A message on a line, and the fields that say its reason on lines of their own.
journal() { journalctl -b -o verbose --output-fields=MESSAGE,F_FROM,F_REASON,F_ERROR -u portkeep.service "$@" | sed -n 's/^ *\(MESSAGE\|F_[A-Z]*\)=//p'; }
journal_has() { journal | grep -F "$1" | grep -qF "$2" || { journal | grep -F "$1"; false; }; }

order() {
	check 'Portkeep is active' systemctl is-active portkeep.service
	check 'sysinit.target comes after it' after_portkeep sysinit.target ActiveEnterTimestampMonotonic
	for unit in nginx.service redis-server.service plain.service early.service outsider.service; do
		check "$unit starts after it" after_portkeep "$unit" ExecMainStartTimestampMonotonic
	done
	check 'nginx has port 80' soon http
	check 'redis has port 6379' soon redis
	check 'a service without rights has port 853' soon plain
	check 'systemd itself is refused port 80 for a socket of another unit' [ "$(property squatter.socket Result)" = resources ]
	check 'and has the one that is declared for root' eval '[ "$(cat </dev/tcp/127.0.0.1/7400)" = plain ]'
	note "ready at $(property portkeep.service ActiveEnterTimestampMonotonic) us, having begun at $(property portkeep.service ExecMainStartTimestampMonotonic) us"
}

hostiles() {
	check 'root, from sysinit.target on, was refused every time' refused_always early
	check 'so was an ordinary user' refused_always outsider
	check 'and they go on trying' still_trying early
}

main_pid() { property portkeep.service MainPID; }
is_another_agent() { systemctl -q is-active portkeep.service && [ "$(main_pid)" != 0 ] && [ "$(main_pid)" != "$1" ]; }

agents_come_and_go() {
	local before=$1 pid reserved
	reserved=$(cat /proc/sys/net/ipv4/ip_local_reserved_ports)
	pid=$(main_pid)
	systemctl kill -s KILL portkeep.service
	check 'the agent is killed: nothing is lifted' root_refused 8443
	check 'another takes its place' soon is_another_agent "$pid"
	check 'with the same reservations and tokens' [ "$(in_force)" = "$before" ]
	check 'and the same ip_local_reserved_ports' [ "$(cat /proc/sys/net/ipv4/ip_local_reserved_ports)" = "$reserved" ]

	systemctl stop portkeep.service
	check 'the service is stopped: nothing is lifted' root_refused 8443
	check 'nginx, unknowing, starts again meanwhile' restarts nginx.service http 1 stop
	check 'the service is started' systemctl start portkeep.service
	check 'what is up is adopted' [ "$(in_force)" = "$before" ]
}

# A group and folders with their modes come with the package.
accounts_and_folders() {
	getent group portkeep && systemctl is-enabled portkeep.service || return
	[ "$(stat -c '%a %U %G' /etc/portkeep/ports.d /run/portkeep /var/lib/portkeep | tr '\n' ' ')" = '755 root root 755 root root 700 root root ' ]
}

# A version that keeps reservations in another layout: it is refused, and nothing is touched.
other_layout() {
	local before=$1 pid sums said
	pid=$(main_pid)
	sums=$(sha256sum /usr/bin/portkeep /usr/lib/systemd/system/portkeep.service)
	said=$(dpkg --install /usr/lib/boot-test/other.deb 2>&1) && return 1
	echo "$said"
	grep -qF 'systemctl stop portkeep.service; portkeep down' <<<"$said" || return
	[ "$(sha256sum /usr/bin/portkeep /usr/lib/systemd/system/portkeep.service)" = "$sums" ] || return
	[ "$(main_pid)" = "$pid" ] && [ "$(in_force)" = "$before" ]
}

upgrades() {
	local before=$1 pid
	check 'the package made its group and folders' accounts_and_folders
	check 'a version with another layout is refused before anything is changed, with what to do' other_layout "$before"
	hostiles
	pid=$(main_pid)
	check 'the package is upgraded' dpkg --install /usr/lib/boot-test/new.deb
	check 'the agent is another' soon is_another_agent "$pid"
	check 'the reservations and tokens are the same' [ "$(in_force)" = "$before" ]
	hostiles
}

# An ordinary user asks the port server, binds the port, and then no longer runs.
asks_port_server() {
	setpriv --reuid outsider --clear-groups python3 -c '
import os, socket
server = socket.socket(socket.AF_UNIX)
server.connect("\0portkeep")
server.sendall(b"%d\n" % os.getpid())
port = int(server.recv(100))
socket.socket().bind(("", port))
print(port)'
}
port_server() {
	check 'the port server is off by default' not systemctl -q is-enabled portkeep-portserver.socket
	check 'its socket is enabled' systemctl enable --now portkeep-portserver.socket
	check 'it does not run before a program asks' not systemctl -q is-active portkeep-portserver.service
	check 'an ordinary user gets a port of it' asks_port_server
	check 'and systemd has started it' systemctl -q is-active portkeep-portserver.service
	check 'it starts again' systemctl restart portkeep-portserver.service
	check 'and serves the same socket' asks_port_server
}

removed() {
	systemctl stop early.service outsider.service
	check 'the package is removed' dpkg --remove portkeep
	check 'and nothing is reserved any more' not root_refused 8443
	check 'no pins are left' [ -z "$(ls /sys/fs/bpf | grep -v debug)" ]
	check 'no reserved ports are left' [ -z "$(cat /proc/sys/net/ipv4/ip_local_reserved_ports)" ]
	check 'the service is gone' not systemctl -q is-active portkeep.service
	check 'so is the port server' eval '! systemctl -q is-active portkeep-portserver.socket && ! systemctl -q is-active portkeep-portserver.service'
	check 'it is purged' dpkg --purge portkeep
	check 'its group, state and configuration are gone' eval '! getent group portkeep && ! getent group portkeep-watch && [ ! -e /var/lib/portkeep ] && [ ! -e /etc/portkeep ] && [ ! -e /run/portkeep ] && [ -z "$(find /etc/systemd -name "portkeep-portserver*")" ]'
}

reloads() {
	printf '[[reservation]]\nname = "new"\ntcp = 7000\nuser = "outsider"\n' >/etc/portkeep/ports.d/new.toml
	check 'the service is reloaded' systemctl reload portkeep.service
	check 'a new file counts' root_refused 7000
	rm /etc/portkeep/ports.d/new.toml
	check 'it is reloaded again' systemctl reload portkeep.service
	check 'a removed file no longer does' not root_refused 7000
}

# This requires the most rights: another namespace, found by its processes, entered, and its sysctl written.
other_namespace() {
	unshare --net portkeep run --ports 7100 -- cat /proc/sys/net/ipv4/ip_local_reserved_ports | grep -x 7100
}

# Another user's server is there first, and may stay: the service finds its user in /proc.
around() {
	setpriv --reuid outsider --clear-groups /usr/lib/boot-test/hostile serve 7300 &
	local server=$!
	printf '[[reservation]]\nname = "around"\ntcp = 7300\nuser = "outsider"\naround = true\n' >/etc/portkeep/ports.d/around.toml
	sleep 1
	portkeep reload
	local listed
	listed=$(portkeep persist list)
	rm /etc/portkeep/ports.d/around.toml
	portkeep reload
	kill "$server"
	echo "$listed"
	grep -q '^around .* in force' <<<"$listed"
}

# Whether the NFS client connects to a port, which it does from one between 900 and 910. The first time it loads modules, within the
# time for an answer (3 s).
nfs_connects_to() {
	/usr/lib/boot-test/hostile serve "$1" &
	local server=$! there
	soon eval "[ \"\$(cat </dev/tcp/127.0.0.1/$1)\" = plain ]"
	timeout 30 mount -i -t nfs4 -o "vers=4.0,proto=tcp,port=$1,addr=127.0.0.1,clientaddr=127.0.0.1,soft,timeo=30,retrans=1" 127.0.0.1:/ /mnt
	kill "$server"
	printf -v there '0100007F:%04X' "$1"
	# Either side may have closed first.
	grep -E "$there 0100007F:038[4-9A-E] |0100007F:038[4-9A-E] $there " /proc/net/tcp
}

# Whether it connects to one of these. A connection that the server resets leaves nothing behind to be seen.
nfs_connects() {
	local port
	for port; do nfs_connects_to "$port" && return; done
	false
}

# A thread of the kernel binds that port. It runs as root, but it is not a process of root.
kernel_threads() {
	local failed=
	modprobe sunrpc min_resvport=900 max_resvport=910
	modprobe nfsv4
	nfs_connects 2049 2052 2053 || failed+=' without a reservation'
	portkeep watch 900-910/tcp --what refused --json >/run/refused &
	local watch=$!
	# The connections before may have left a TIME_WAIT, which ends within a minute.
	soon portkeep persist add --name privileged --tcp 900-910 --user root
	nfs_connects_to 2050 && failed+=' with one'
	soon grep -q '"what":"refused"' /run/refused || failed+=' not seen'
	kill "$watch"
	root_refused 905 && failed+=' root'
	portkeep persist delete privileged
	nfs_connects 2051 2054 2055 || failed+=' afterwards'
	echo "failed:$failed"
	[ -z "$failed" ]
}

# Drop-ins for a server and a socket that are not declared: they come into force around what listens.
adopts() {
	local own=/etc/portkeep/ports.d failed= adopted port text
	systemd-run --quiet --unit=adoptee.service --uid=outsider /usr/lib/boot-test/hostile serve 7500
	printf '[Socket]\nListenStream=127.0.0.1:7501\n[Install]\nWantedBy=sockets.target\n' >/etc/systemd/system/awaited.socket
	printf '[Service]\nExecStart=/bin/true\n' >/etc/systemd/system/awaited.service
	systemctl daemon-reload
	systemctl enable --now awaited.socket
	soon portkeep adopt adoptee.service
	adopted=$(portkeep adopt adoptee.service awaited.socket nginx.service)
	echo "$adopted"
	for text in 'unit = "adoptee.service"' "$own/awaited.toml" 'user = "root"'; do
		grep -qF "$text" <<<"$adopted" || failed+=" $text"
	done
	# Nothing that is reserved already is adopted.
	grep -qF nginx <<<"$adopted" && failed+=' nginx'
	portkeep adopt --write adoptee.service awaited.socket
	portkeep reload
	for port in 7500 7501; do
		text=$(portkeep who "$port/tcp")
		grep -q 'is reserved for' <<<"$text" || failed+=" $port: $text"
	done
	outsider_refused 7501 || failed+=' refused'
	rm "$own"/{adoptee,awaited}.toml
	portkeep reload
	systemctl stop adoptee.service
	systemctl disable --now awaited.socket
	rm /etc/systemd/system/awaited.{socket,service}
	echo "failed:$failed"
	[ -z "$failed" ]
}

# Servers of Debian that were never declared, sshd by its service and by its socket, as an administrator adopts them.
# They start again afterwards.
adopts_servers() {
	local own=/etc/portkeep/ports.d failed= cluster unit port text
	cluster=postgresql@$(ls /usr/lib/postgresql)-main.service
	# The hostile programs would have the ports of nginx and redis; a server that keeps its port makes the next declaration wait.
	systemctl stop early.service outsider.service nginx.service redis-server.service
	mkdir /run/aside
	mv /usr/lib/portkeep/ports.d/nginx.toml "$own/redis.toml" /run/aside
	portkeep reload
	systemctl start nginx.service redis-server.service postgresql.service ssh.service chrony.service
	soon eval 'portkeep adopt | grep -q 5432'
	portkeep adopt --write
	portkeep reload || failed+=' reload'
	while read -r unit port; do
		text=$(portkeep who "$port")
		grep -qF "is reserved for unit $unit" <<<"$text" || failed+=" $unit: $text"
	done <<-END
		nginx.service 80/tcp
		redis-server.service 6379/tcp
		$cluster 5432/tcp
		ssh.service 22/tcp
		chrony.service 323/udp
	END
	systemctl restart nginx.service redis-server.service "$cluster" ssh.service chrony.service || failed+=' restart'
	for port in 80/tcp 6379/tcp 5432/tcp 22/tcp 323/udp; do
		soon eval "portkeep who $port | grep -q 'bound by  pid'" || failed+=" $port"
	done
	root_refused 5432 || failed+=' refused'

	rm "$own/ssh.toml"
	portkeep reload
	systemctl stop ssh.service
	systemctl enable --now ssh.socket
	portkeep adopt --write ssh.socket
	portkeep reload || failed+=' reload'
	text=$(portkeep who 22/tcp)
	grep -qF 'is reserved for user root' <<<"$text" || failed+=" ssh.socket: $text"
	systemctl restart ssh.socket || failed+=' ssh.socket'
	grep -q SSH-2.0 < <(head -n 1 </dev/tcp/127.0.0.1/22) || failed+=' banner'

	systemctl disable --now ssh.socket
	systemctl stop ssh.service postgresql.service chrony.service nginx.service redis-server.service
	grep -l 'portkeep adopt' "$own"/*.toml | xargs rm
	mv /run/aside/nginx.toml /usr/lib/portkeep/ports.d
	mv /run/aside/redis.toml "$own"
	# This boot ends with a power cut.
	sync
	portkeep reload
	systemctl start nginx.service redis-server.service early.service outsider.service
	echo "failed:$failed"
	[ -z "$failed" ]
}

# The answer of portkeep-web has this text in it.
answers() {
	exec 3<>/dev/tcp/127.0.0.1/7676 || return
	printf 'GET %s HTTP/1.1\r\nHost: 127.0.0.1:7676\r\nConnection: close\r\n\r\n' "$1" >&3
	grep -F "$2" <&3
}

# A user of its own without any right, to whom everything is read-only; and the agent changes nothing for its group.
web_only_reads() {
	local pid uid gid place
	pid=$(property portkeep-web.service MainPID)
	grep -x 'CapEff:.*0000000000000000' "/proc/$pid/status" || return
	uid=$(stat -c %u "/proc/$pid") gid=$(stat -c %g "/proc/$pid")
	[ "$uid" != 0 ] && [ "$gid" = "$(getent group portkeep-watch | cut -d: -f3)" ] || return
	for place in /etc /usr /var/lib /run /run/portkeep /home /sys/fs/bpf; do
		nsenter --target "$pid" --mount setpriv --reuid "$uid" --regid "$gid" --clear-groups touch "$place/it" && return 1
	done
	# Not even root could, from there.
	nsenter --target "$pid" --mount touch /etc/it && return 1
	! setpriv --reuid "$uid" --regid "$gid" --clear-groups portkeep persist add --name it --tcp 9300
}

web() {
	check 'portkeep-web is installed' dpkg --install /usr/lib/boot-test/web.deb
	check 'it is off by default' not systemctl -q is-enabled portkeep-web.service
	check 'and does not run' not systemctl -q is-active portkeep-web.service
	check 'it is enabled and started' systemctl enable --now portkeep-web.service
	web_serves
	check 'portkeep-web can only read' web_only_reads
}

web_serves() {
	check 'the page of the port map is served' soon answers / '<canvas id="map"'
	check 'and its data' soon answers /api/map '"up":true'
	check 'and metrics, with those that are for watchers' soon answers /metrics portkeep_refused_binds_total
}

web_removed() {
	check 'portkeep-web is removed' dpkg --purge portkeep-web
	check 'and nothing is left of it' eval '[ -z "$(find /etc/systemd /run/portkeep-web /usr/bin/portkeep-web /var/lib/private -name "*portkeep-web*" 2>/dev/null)" ]'
	check 'nor does it run' not systemctl -q is-active portkeep-web.service
}

# The refusals before `watch` was started.
past() { portkeep watch --since -1h --no-follow --what refused --json | grep -m 1 '"what":"refused"'; }

# The commands of the README, on a machine where it is up for everybody.
readme() {
	portkeep run --count 2 --label web -- bash -c 'echo "$PORTS" >/run/web; exec /usr/lib/boot-test/hostile serve "${PORTS%,*}"' &
	local run=$! port second failed=
	soon test -s /run/web
	IFS=, read -r port second </run/web
	soon eval "[ \"\$(cat </dev/tcp/127.0.0.1/$port)\" = plain ]" || failed+=' server'
	portkeep list | grep -q web || failed+=' list'
	portkeep who "$port" || failed+=' who'
	root_refused "$port" || failed+=' bound'
	root_refused "$second" || failed+=' unbound'
	outsider_refused "$second" || failed+=' outsider'
	portkeep acquire --ports "$second" --for 0s && failed+=' acquire'
	kill "$run"
	wait "$run"
	# Connections may leave TIME-WAIT behind.
	soon eval '! portkeep who "$port" | grep -q "belongs to"' || failed+=' end'
	setpriv --reuid outsider --clear-groups portkeep acquire --count 3 --both --for 0s | grep -F tcp+udp || failed+=' user'
	echo "failed:$failed"
	[ -z "$failed" ]
}

# Everything that the service could not do because a right is missing would be among these.
no_complaints() {
	local said
	said=$(journal -p warning _COMM=portkeep | grep -vE '^declared, but not in force$|ports.d/(alpha|beta).toml|was refused|refused|more happened' || true)
	echo "$said"
	[ -z "$said" ]
}

. /usr/lib/boot-test/firewall.sh

first_boot() {
	order
	hostiles
	check 'two packages want one port: both files are reported' journal_has /usr/lib/portkeep/ports.d/alpha.toml /usr/lib/portkeep/ports.d/beta.toml
	check 'nginx is stopped and started, under fire' restarts nginx.service http "$many" stop
	check 'nginx crashes and is started' restarts nginx.service http "$few" crash
	check 'redis is stopped and started' restarts redis-server.service redis "$few" stop
	check 'the service without rights crashes and is started' restarts plain.service plain 2 crash
	upgrades "$(in_force)"
	agents_come_and_go "$(in_force)"
	reloads
	check 'a port of another network namespace is confirmed' other_namespace
	check 'what the README shows' readme
	check 'a port whose rightful owner is there already is reserved around it' around
	check 'a thread of the kernel is refused a port that is declared for root' kernel_threads
	check 'services that let the kernel choose ports stay in their ranges, which are all that the firewall opens' firewalled
	check 'what was refused is in the journal' past
	check 'the doctor names what conflicts' eval 'portkeep doctor | grep -F "[in-force]"'
	check 'servers that run are adopted' adopts
	check 'so are nginx, redis, PostgreSQL, sshd and chrony' adopts_servers
	web
	hostiles
	check 'the service lacked no right' no_complaints
	check 'a reservation is created' portkeep persist add --name metrics --tcp 9100 --unit plain.service
	check 'another is, and is deleted' eval 'portkeep persist add --name brief --tcp 9200 --unit plain.service && portkeep persist delete brief'
	check 'the first is listed' eval 'portkeep persist list | grep metrics'
	# No sync, no unmount: everything that the commands reported must be on the disk by now.
	next cut
}

second_boot() {
	order
	hostiles
	check 'what was reported as created is in force' root_refused 9100
	check 'and listed' eval 'portkeep persist list | grep metrics'
	check 'what was reported as deleted is gone' not root_refused 9200
	check 'a user is refused as well' outsider_refused 9100
	check 'the service lacked no right' no_complaints
	web_serves
	web_removed
	port_server
	[ -n "$short" ] && { removed; end; }
	check 'it is deleted' portkeep persist delete metrics
	echo 'pool = ' >/etc/portkeep/portkeep.toml
	next reboot
}

# If the configuration is invalid, the machine boots all the same. When the configuration is corrected, everything works
# again.
third_boot() {
	check 'the machine boots in spite of a broken configuration' eval '! systemctl is-active portkeep.service'
	check 'the journal names file and line' journal_has /etc/portkeep/portkeep.toml:1 'not TOML'
	check 'what runs has its ports' soon redis
	rm /etc/portkeep/portkeep.toml
	check 'once it is mended the agent comes by itself' soon systemctl is-active portkeep.service
	check 'what was deleted before an orderly reboot is gone' not root_refused 9100
	next reboot
}

fourth_boot() {
	order
	hostiles
	removed
	end
}

end() {
	emit '"complete"'
	systemctl poweroff
	exit
}

case $boot in
1) first_boot ;;
2) second_boot ;;
3) third_boot ;;
4) fourth_boot ;;
*) check 'no more boots than asked for' false; end ;;
esac
