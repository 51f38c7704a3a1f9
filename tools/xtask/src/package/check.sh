# The packages are installed, upgraded under load, removed and purged.

# A program that has two ports, and one that tries to bind them all the time.
load() {
	rm -rf "$root/run/load"
	mkdir "$root/run/load"
	# Not by in_root: $! must be the program.
	chroot "$root" portkeep agent --up >"$root/run/agent" 2>&1 &
	agent=$!
	for _ in $(seq 100); do in_root portkeep status --json 2>/dev/null | grep -q '"agent":true' && break; sleep 0.1; done
	chroot "$root" portkeep run --count 2 --label load -- sh -c 'echo "$PORTS" >/run/load/ports; exec sleep 1000' 2>/dev/null &
	run=$!
	for _ in $(seq 100); do [ -s "$root/run/load/ports" ] && break; sleep 0.1; done
	ports=$(tr ',' ' ' <"$root/run/load/ports")
	in_root portkeep list --json >"$root/run/load/before"
	# shellcheck disable=SC2086  # a list
	chroot "$root" /usr/lib/boot-test/hostile hammer /run/load/tally $ports &
	hostile=$!
	tries 1
}
# So many more tries, and all of them refused.
tries() {
	local first now refused odd
	first=$(cut -d' ' -f1 "$root/run/load/tally" 2>/dev/null || echo 0)
	for _ in $(seq 100); do
		{ read -r now refused odd <"$root/run/load/tally"; } 2>/dev/null || now=0
		[ "$now" -ge $((first + $1)) ] && break
		sleep 0.1
	done
	[ "$now" -ge $((first + $1)) ] || fail 'the outsider stopped trying'
	[ "$now" = "$refused" ] && [ "$odd" = 0 ] || { cat "$root/run/load/tally"; fail 'a bind was not refused'; }
}
# The same reservations with the same tokens.
unchanged() { [ "$(in_root portkeep list --json | grep -o '"token":"[^"]*"')" = "$(grep -o '"token":"[^"]*"' "$root/run/load/before")" ] || fail 'the reservations are others'; }
no_load() {
	kill "$hostile" "$run" 2>/dev/null || true
	wait "$hostile" "$run" 2>/dev/null || true
}

# A package's commands: install FILE, upgrade FILE, remove.
deb_install() { deb --install "/packages/$1/portkeep_$2_amd64.deb"; }
deb_remove() { deb --remove portkeep; }
rpm_install() { rpm --root "$root" --dbpath /var/lib/rpm --nodeps --upgrade "$root/packages/$1/portkeep-$2-1.x86_64.rpm" >"$root/run/log" 2>&1; }
rpm_remove() { rpm --root "$root" --dbpath /var/lib/rpm --nodeps --erase portkeep >"$root/run/log" 2>&1; }

for kind in deb rpm; do
	if [ "$kind" = rpm ] && ! command -v rpm >/dev/null; then echo 'SKIPPED: no rpm'; continue; fi
	echo "$kind"
	ok ${kind}_install old 0.0.1
	in_root getent group portkeep >/dev/null || fail 'there is no group portkeep'
	[ -d "$root/etc/portkeep/ports.d" ] || fail 'there is no /etc/portkeep/ports.d'
	in_root portkeep check >/dev/null
	shown 'installed: group, folders, a valid configuration'

	load
	sum=$(sha256sum "$root/usr/bin/portkeep" "$root/usr/lib/systemd/system/portkeep.service")
	if ${kind}_install other 9.0.0; then fail 'a version with another layout was installed'; fi
	said 'portkeep down'
	[ "$sum" = "$(sha256sum "$root/usr/bin/portkeep" "$root/usr/lib/systemd/system/portkeep.service")" ] || fail 'files were changed'
	unchanged
	tries 500
	shown 'another layout: refused before anything was changed, with what to do'

	ok ${kind}_install new "$new"
	unchanged
	tries 500
	shown 'upgraded under load: the same reservations, every bind of the outsider was refused'

	ok in_root systemctl --quiet enable portkeep-portserver.socket
	kill "$agent"
	wait "$agent" || true
	ok ${kind}_remove
	[ -z "$(find "$root/etc/systemd" -name 'portkeep-portserver*')" ] || fail 'the socket of the port server is still enabled'
	kill "$hostile" "$run" 2>/dev/null || true
	gone
	no_load
	shown 'removed: nothing is enforced any more, and no unit is enabled'

	ok ${kind}_install old 0.0.1
	ok in_root portkeep up >/dev/null
	ok ${kind}_install other 9.0.0
	[ -z "$(pins)" ] || fail 'the old version is still up'
	ok ${kind}_remove
	shown 'another layout, and nothing is reserved: upgraded'

	if [ "$kind" = deb ]; then
		mkdir -p "$root/var/lib/portkeep"
		ok deb --purge portkeep
		for group in portkeep portkeep-watch; do
			in_root getent group "$group" >/dev/null && fail "the group $group is left"
		done
	else
		rm -rf "$root/var/lib/portkeep" "$root/etc/portkeep"
		in_root groupdel portkeep
		in_root groupdel portkeep-watch
	fi
	everything >"$root/run/after"
	diff "$root/run/before" "$root/run/after" || fail 'files are left'
	shown 'nothing is left'
done

# The answer to a request.
ask() {
	exec 3<>/dev/tcp/127.0.0.1/7676
	printf 'GET %s HTTP/1.1\r\nHost: 127.0.0.1:7676\r\nConnection: close\r\n\r\n' "$1" >&3
	cat <&3 >"$root/run/log"
	exec 3>&-
}
# Packages with a service of their own: install NAME, purge NAME.
deb_install_more() { deb --install "/packages/new/$1_${new}_amd64.deb"; }
deb_purge() { deb --purge "$1" portkeep; }
rpm_install_more() { rpm --root "$root" --dbpath /var/lib/rpm --nodeps --upgrade "$root/packages/new/$1-$new-1.x86_64.rpm" >"$root/run/log" 2>&1; }
rpm_purge() {
	rpm --root "$root" --dbpath /var/lib/rpm --nodeps --erase "$1" portkeep >"$root/run/log" 2>&1 || return
	rm -rf "$root/etc/portkeep"
	in_root groupdel portkeep && in_root groupdel portkeep-watch
}
try_portkeep_web() {
	chroot "$root" portkeep-web >"$root/run/web" 2>&1 &
	web=$!
	for _ in $(seq 100); do [ -s "$root/run/web" ] && break; sleep 0.1; done
	ask / && said '<canvas id="map"'
	ask /metrics && said 'portkeep_up 0'
	kill "$web"
	wait "$web" || fail 'it does not end well'
	shown 'the map and the metrics are served'
}
try_portkeep_fleet() {
	if in_root portkeep-fleet daemon >"$root/run/log" 2>&1; then fail 'it runs without etcd'; fi
	said 'no etcd is named: write `endpoints` into /etc/portkeep/fleet.toml'
	shown 'its configuration is read'
}
for package in portkeep-web portkeep-fleet; do
	for kind in deb rpm; do
		if [ "$kind" = rpm ] && ! command -v rpm >/dev/null; then continue; fi
		echo "$package, $kind"
		ok ${kind}_install new "$new"
		ok ${kind}_install_more "$package"
		[ -z "$(find "$root/etc/systemd/system" -name "$package.service")" ] || fail 'it is enabled'
		"try_${package//-/_}"
		ok ${kind}_purge "$package"
		everything >"$root/run/after"
		diff "$root/run/before" "$root/run/after" || fail 'files are left'
		shown 'installed, off by default; removed, nothing is left'
	done
done

echo winsock
ok deb --install "/packages/new/portkeep-winsock_${new}_amd64.deb"
in_root ldconfig -p | grep -q libportkeep_winsock.so.0 || fail 'the loader does not know the library'
ok deb --purge portkeep-winsock
shown 'installed and removed'

echo tar.gz
tar -C "$root/run" -xzf "$root/packages/new/portkeep-$new-x86_64-linux.tar.gz"
rm "$root/run/portkeep-$new-x86_64-linux/MANIFEST"
cp --recursive --no-target-directory "$root/run/portkeep-$new-x86_64-linux" "$root"
[ "$(in_root portkeep --version)" = "portkeep $new" ] || fail 'the program does not run'
shown 'unpacked: the program runs'
if command -v cc >/dev/null && command -v pkg-config >/dev/null; then
	# shellcheck disable=SC2046  # options
	cc -Wall -Werror -o "$root/run/server" "$root/usr/local/share/doc/portkeep/examples/server.c" \
		$(PKG_CONFIG_PATH=$root/usr/local/share/pkgconfig pkg-config --define-prefix --cflags portkeep)
	in_root portkeep up >/dev/null
	chroot "$root" /run/server >"$root/run/log" 2>&1 &
	server=$!
	for _ in $(seq 100); do [ -s "$root/run/log" ] && break; sleep 0.1; done
	said 'listening on port'
	kill "$server"
	in_root portkeep down >/dev/null
	shown 'its header and pkg-config file: the example in C runs'
else
	echo 'SKIPPED: no cc or pkg-config'
fi
