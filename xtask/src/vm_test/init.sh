#!/bin/busybox sh
# The guest's only process of its own. `/run-tests` follows; what it reports the host reads from the console.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
uname -r

now() { read -r up idle </proc/uptime; echo "${up%.*}${up#*.}0"; }

# Name and path of a test binary.
run_test() {
	start=$(now)
	timeout 1800 "$2" >/tmp/output 2>&1 </dev/null
	code=$?
	cat /tmp/output
	echo "@vm {\"binary\":\"$1\",\"code\":$code,\"milliseconds\":$(($(now) - start))}"
}

. /run-tests
echo '@vm "complete"'
poweroff -f
