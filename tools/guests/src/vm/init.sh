#!/bin/busybox sh
# The guest's only process of its own. `/run-tests` follows. It reports on the console, which the host reads.
/bin/busybox mkdir -p /busybox
/bin/busybox --install -s /busybox
# If the real program is there, it is used.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin:/busybox
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
echo '@vm "booted"'
# Whole systems load these by themselves.
for module in inet_diag tcp_diag udp_diag raw_diag; do
	file=/lib/modules/$(uname -r)/kernel/net/ipv4/$module.ko
	[ -e "$file.xz" ] && unxz "$file.xz"
	insmod "$file"
done

now() { read -r up idle </proc/uptime; echo "${up%.*}${up#*.}0"; }

# Processes that a test binary has left behind, janitors that are still at work included. Kernel threads have no exe.
remains() {
	for process in /proc/[0-9]*; do
		[ "$process" != /proc/1 ] && [ -e "$process/exe" ] &&
			echo "$process: $(tr '\0' ' ' 2>/dev/null <"$process/cmdline")"
	done
	for file in /sys/fs/cgroup/portkeep-* /sys/fs/bpf/portkeep*; do
		[ -e "$file" ] && echo "$file"
	done
}

# Name and path of a test binary, and where it attaches.
run_at() {
	start=$(now)
	PORTKEEP_TEST_ATTACH=$3 timeout 1800 "$2" >/tmp/output 2>&1 </dev/null
	code=$?
	took=$(($(now) - start))
	cat /tmp/output
	# The janitors give others twenty seconds, and then kill them.
	for second in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do
		# Some end while we look.
		remains >/tmp/remains 2>/dev/null
		[ -s /tmp/remains ] || break
		sleep 1
	done
	if [ -s /tmp/remains ]; then
		echo 'left behind:'
		cat /tmp/remains
		[ $code = 0 ] && code=200
		# Kill all processes except this one.
		kill -9 -1
	fi
	echo "@vm {\"binary\":\"$1\",\"attach\":\"$3\",\"code\":$code,\"milliseconds\":$took}"
}

# Attached to the root; and once more, below it, if there are tests that need an outside.
run_test() {
	run_at "$1" "$2" root
	if grep -q 'LEFT ' /tmp/output; then
		run_at "$1" "$2" below
	fi
}

. /run-tests
echo '@vm "complete"'
poweroff -f
