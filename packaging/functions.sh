# Shared by the scripts of the .deb and the .rpm. @ABI@ is the number of the new version's layout in the kernel.

pins=/sys/fs/bpf/portkeep

# One number of `portkeep status --json`; nothing if there is none.
status_of() { printf '%s\n' "$status" | sed -n "s/.*\"$1\": *\\([0-9][0-9]*\\).*/\\1/p"; }

# Runs before anything is changed, with the program of the old version. A version with another layout cannot take over
# the reservations that are in the kernel.
before_upgrade() {
	status=$(portkeep status --json 2>/dev/null) || return 0
	[ -d "$pins" ] || return 0
	abi=$(status_of abi)
	if [ -z "$abi" ] || [ "$abi" = @ABI@ ]; then return 0; fi
	held=$(status_of reservations)
	if [ "${held:-0}" -gt 0 ]; then
		echo "error: portkeep cannot be upgraded while reservations are in force: there are $held, and the new version" >&2
		echo "       keeps them in another layout (ABI @ABI@ instead of $abi). Nothing was changed. End them, then upgrade:" >&2
		echo "           systemctl stop portkeep.service; portkeep down" >&2
		echo "       No port is reserved from then on, until the new version has started." >&2
		return 1
	fi
	stop_service
	portkeep down
}

# The programs in the kernel first, the agent afterwards: at no time can others bind a reserved port.
after_upgrade() {
	if [ -d "$pins" ]; then portkeep upgrade; fi
}

# Nothing may stay in the kernel when the program is gone. If an administrator has enabled the port server's socket,
# systemd would look for it at the next boot.
before_removal() {
	# shellcheck disable=SC2086  # a list
	portserver='portkeep-portserver.socket portkeep-portserver.service'
	if [ -d /run/systemd/system ]; then systemctl stop $portserver || true; fi
	if command -v systemctl >/dev/null; then systemctl --quiet disable $portserver || true; fi
	stop_service
	if [ -d "$pins" ]; then portkeep down; fi
}
