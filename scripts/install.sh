#!/bin/bash
# Installs what is missing, and only that: distribution packages, .venv, the project itself.
#
#   scripts/install.sh [--root] GROUP...
#
# GROUP is run, demo, test, image or bench, see packages.txt; test also installs the Python extra "dev".
# --root: the caller needs root for what comes next, so say it before anything is installed.
#
# Nothing is installed twice: dpkg is asked for the packages, a stamp in .venv for the Python
# side. The stamp is written last, so an interrupted installation is done again.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
python=/usr/bin/python3
apt_options=(-o DPkg::Lock::Timeout=300 --yes --quiet --no-install-recommends)
log=

say() { printf 'install: %s\n' "$*"; }
# One line: what failed, why, what to do.
die() {
	printf 'install: error: %s\n' "$*" >&2
	exit 1
}

# The first line of the log that says why, without the tool's own prefix.
why() {
	local line
	line=$(grep -E -m 1 "$1" "$log" || true)
	printf '%s' "${line:-no reason given}" | sed -E 's/^ *(E|W|ERROR): *//'
}

# pip tells an unreachable index as a package it cannot find; the connection's error is the cause.
why_pip() {
	local connection
	connection=$(grep -oE '\[Errno -?[0-9]+\] [^]()'"'"']+|SSLError|ProxyError|[A-Za-z]*Timeout[A-Za-z]*' "$log" | head -n 1 || true)
	if [ -n "$connection" ] && grep -q 'connection broken by' "$log"; then
		printf 'the Python package index cannot be reached (%s): check network, proxy and pip config' "$connection"
	else
		why '^ *(ERROR|error):'
	fi
}

distribution() {
	# shellcheck source=/dev/null
	(. /etc/os-release 2>/dev/null && printf '%s' "${PRETTY_NAME:-this distribution}")
}

check_machine() {
	[ "$(uname -s)" = Linux ] ||
		die "hvprobe reads the Linux kernel and this is $(uname -s): run it on a Linux machine"
	if [ "$need_root" = yes ] && [ "$(id -u)" != 0 ]; then
		die "loading BPF programs and reading other users' processes needs root and you are $(id -un): run it with sudo or as root"
	fi
	if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
		die "no apt-get on $(distribution): the packages are known for Debian 12, 13 and Ubuntu 24.04 or later only; elsewhere use the container image"
	fi
	check_python
}

# The distribution's python decides, for its bcc belongs to it.
check_python() {
	[ -x "$python" ] || return 0
	"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
		die "$python is $("$python" -c 'import platform; print(platform.python_version())') on $(distribution), hvprobe needs 3.11 or later and the distribution's bcc needs the distribution's python: use Debian 12, 13 or Ubuntu 24.04 or later"
}

# Names of the packages of the groups asked for that are not installed, one a line.
missing_packages() {
	local architecture wanted
	architecture=$(dpkg --print-architecture 2>/dev/null)
	mapfile -t wanted < <(awk -v groups=" ${groups[*]} " -v architecture="$architecture" '
		/^#/ || NF == 0 { next }
		{ group = $1 }
		match(group, /\[.*\]$/) {
			if (substr(group, RSTART + 1, RLENGTH - 2) != architecture) next
			group = substr(group, 1, RSTART - 1)
		}
		index(groups, " " group " ") && !seen[$2]++ { print $2 }' "$root/scripts/packages.txt")
	# dpkg-query fails for names it never heard of and still prints the others.
	dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${wanted[@]}" 2>/dev/null |
		awk -v wanted="${wanted[*]}" '
			$1 == "installed" { have[$2] = 1 }
			END { n = split(wanted, name, " "); for (i = 1; i <= n; i++) if (!have[name[i]]) print name[i] }'
}

# Those of the packages given that the package lists do not offer.
not_offered() {
	local package candidate
	for package in "$@"; do
		candidate=$(apt-cache policy "$package" 2>/dev/null | sed -n 's/^  Candidate: //p')
		if [ -z "$candidate" ] || [ "$candidate" = "(none)" ]; then printf '%s ' "$package"; fi
	done
}

# apt-get waits for dpkg's lock by itself, but not for the lock of the package lists.
update_lists() {
	local deadline=$((SECONDS + 300))
	say "fetching the package lists"
	while :; do
		apt-get "${apt_options[@]}" update >"$log" 2>&1 || true
		grep -q 'Could not get lock' "$log" || return 0
		[ $SECONDS -lt $deadline ] ||
			die "apt-get update: $(why '^E:'): wait until the other apt has ended and try again"
		sleep 2
	done
}

apt_install() {
	# SYSTEMD_OFFLINE: a package that brings a service (prometheus) must not start it here.
	SYSTEMD_OFFLINE=1 DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
		apt-get "${apt_options[@]}" install "$@" </dev/null >"$log" 2>&1
}

install_packages() {
	local missing absent updated=no
	mapfile -t missing < <(missing_packages)
	[ ${#missing[@]} -gt 0 ] || return 0
	[ "$(id -u)" = 0 ] ||
		die "packages are missing (${missing[*]}) and only root may install them, you are $(id -un): run it with sudo or as root"
	if [ -n "$(not_offered "${missing[@]}")" ]; then
		update_lists
		updated=yes
	fi
	absent=$(not_offered "${missing[@]}")
	if [ -n "$absent" ] && grep -qE '^(E|W|Err)' "$log"; then
		die "packages ${absent% } are not in the package lists and fetching these failed: $(why '^(E|W):'): check network, proxy and apt's sources"
	fi
	[ -z "$absent" ] ||
		die "packages ${absent% } are missing from the archive of $(distribution): enable the archive's main component (Ubuntu: universe too) in apt's sources"
	say "installing packages: ${missing[*]}"
	if ! apt_install "${missing[@]}"; then
		# Lists may be older than the archive: fetch them once and try again.
		if [ "$updated" = no ]; then update_lists; fi
		if [ "$updated" = yes ] || ! apt_install "${missing[@]}"; then
			keep_log
			die "apt-get install ${missing[*]}: $(why '^E:'): whole output in $log"
		fi
	fi
	disable_service prometheus "${missing[@]}"
}

# The test's Prometheus is its own; the package's must not run from the next boot on.
disable_service() {
	local service=$1 package
	shift
	command -v systemctl >/dev/null || return 0
	for package in "$@"; do
		if [ "$package" = "$service" ]; then SYSTEMD_OFFLINE=1 systemctl --quiet disable "$service" 2>/dev/null || true; fi
	done
}

# What .venv must have been made of and from to be up to date.
fingerprint() {
	local extra=$1
	{
		printf '%s\n' "$extra" "$venv" "$("$python" -V)"
		cat "$root/pyproject.toml" "$root/scripts/install.sh" "$root/scripts/isolate.sh"
	} | sha256sum
}

up_to_date() {
	local stamp=$venv/.installed-$1
	[ -r "$stamp" ] && [ "$(cat "$stamp")" = "$(fingerprint "$1")" ] && [ -x "$venv/bin/hvprobe" ]
}

write_stamp() {
	fingerprint "$1" >"$venv/.installed-$1.new"
	mv "$venv/.installed-$1.new" "$venv/.installed-$1"
}

# An environment is kept when it belongs to this folder and python and its pip works.
venv_is_sound() {
	grep -qx 'include-system-site-packages = true' "$venv/pyvenv.cfg" 2>/dev/null &&
		grep -qF "$venv" "$venv/bin/activate" 2>/dev/null &&
		[ "$("$venv/bin/python" -V 2>/dev/null)" = "$("$python" -V)" ] &&
		"$venv/bin/python" -m pip --version >/dev/null 2>&1
}

install_project() {
	local extra=$1 what=$root label="hvprobe and its Python packages"
	if up_to_date "$extra"; then return 0; fi
	if ! venv_is_sound; then
		say "making .venv with $("$python" -V)"
		"$python" -m venv --clear --system-site-packages "$venv" >"$log" 2>&1 || {
			keep_log
			die "making .venv with $python: $(tail -n 1 "$log"): whole output in $log"
		}
	fi
	rm -f "$venv"/.installed-*
	if [ "$extra" = dev ]; then
		what="${root}[dev]"
		label="hvprobe, its Python packages and those of the tests"
	fi
	say "installing $label into .venv"
	if ! "$venv/bin/python" -m pip install --disable-pip-version-check --no-input \
		--editable "$what" >"$log" 2>&1 </dev/null; then
		keep_log
		die "pip install hvprobe: $(why_pip): whole output in $log"
	fi
	"$root/scripts/isolate.sh" "$venv/bin/hvprobe" || exit 1
	check_bcc
	write_stamp run
	if [ "$extra" = dev ]; then write_stamp dev; fi
}

check_bcc() {
	"$venv/bin/python" -c 'import bcc; bcc.BPF' >"$log" 2>&1 ||
		die "import bcc in .venv: $(tail -n 1 "$log"): python3-bpfcc must be the distribution's, and no package named bcc may be in .venv (rm -r .venv and try again)"
}

keep_log() { trap - EXIT; }

need_root=no
groups=()
extra=run
for word in "$@"; do
	case $word in
	--root) need_root=yes ;;
	run | demo | image | bench) groups+=("$word") ;;
	test)
		groups+=("$word")
		extra=dev
		;;
	*) die "unknown word '$word': usage: scripts/install.sh [--root] run|demo|test|image|bench ..." ;;
	esac
done
[ ${#groups[@]} -gt 0 ] || die "nothing asked for: usage: scripts/install.sh [--root] run|demo|test|image|bench ..."

check_machine
# One installation at a time: a lock on the folder itself leaves no file behind.
exec 9<"$root"
if ! flock --nonblock 9; then
	say "waiting for another installation into this folder"
	flock 9
fi
log=$(mktemp "${TMPDIR:-/tmp}/hvprobe-install.XXXXXX")
trap 'rm -f "$log"' EXIT
trap 'say "interrupted; the next call goes on from here"; exit 130' INT
trap 'say "interrupted; the next call goes on from here"; exit 143' TERM

install_packages
check_python
install_project "$extra"
say "up to date"
