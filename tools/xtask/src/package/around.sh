# The beginning of each check: a Debian in a folder, with a cgroup, a network and a BPF file system of its own. Each step
# says what it has shown.
set -eu
self=$0 part=$1 root=$2

fail() { echo "error: $*" >&2; exit 1; }
shown() { echo "  $*"; }

if [ "$part" = outside ]; then
	mount=$(findmnt --noheadings --types cgroup2 --output TARGET | head -n 1)
	group=$mount/portkeep-package-$$
	mkdir "$group"
	status=0
	bash -c 'echo $$ >"$1/cgroup.procs" && shift && exec unshare --mount --net --cgroup --pid --fork --kill-child "$@"' \
		- "$group" bash "$self" inside "$root" || status=$?
	for _ in $(seq 50); do find "$group" -depth -type d -exec rmdir {} + 2>/dev/null && exit "$status"; sleep 0.1; done
	fail "$group is still in use"
fi

mount --make-rprivate /
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t bpf bpf "$root/sys/fs/bpf"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
ip link set lo up
export DEBIAN_FRONTEND=noninteractive LC_ALL=C

in_root() { chroot "$root" "$@"; }
deb() { in_root dpkg "$@" >"$root/run/log" 2>&1; }
said() { grep -qF "$1" "$root/run/log" || { cat "$root/run/log"; fail "not a word of: $1"; }; }
ok() { "$@" || { cat "$root/run/log" 2>/dev/null; fail "failed: $*"; }; }
# Every file, without the records of dpkg and rpm.
everything() {
	find "$root" -xdev \( -path "$root/packages" -o -path "$root/var/lib/dpkg" -o -path "$root/var/lib/rpm" -o -path "$root/usr/lib/sysimage" \
		-o -path "$root/var/lib/systemd" -o -path "$root/var/log" -o -path "$root/var/cache" -o -name '.updated' -o -name 'gshadow*' -o -name 'group*' \
		-o -path "$root/etc/ld.so.cache" \) -prune -o -print | sort
}
reserved() { cat /proc/sys/net/ipv4/ip_local_reserved_ports; }
# The kernel puts two files of its own there.
pins() { ls --almost-all --ignore='*.debug' "$root/sys/fs/bpf"; }
gone() {
	[ -z "$(pins)" ] || fail "pins are left: $(pins)"
	[ -z "$(reserved)" ] || fail "reserved ports are left: $(reserved)"
	[ ! -e "$root/run/portkeep" ] || fail '/run/portkeep is left'
	[ ! -e "$root/usr/bin/portkeep" ] || fail 'the program is left'
}
# The version of the packages.
new=$(basename "$root"/packages/new/portkeep_*_amd64.deb | cut -d_ -f2)
# Every system has these.
mkdir -p "$root/usr/share/man/man1" "$root/usr/share/man/man5"
everything >"$root/run/before"
