# Sourced by harness/tree and harness/arm64-busybox: download a Debian package
# that the machine's own configuration does not offer (another suite, another
# architecture), without touching that configuration.  The entry of the machine
# that says where Debian is (mirror, keys, options) is copied with another suite
# into a private sources list under build/, and apt gets private directories.
# Needs no root, and names no host.
# shellcheck shell=bash

APT_DIR=$BUILD/apt		# wiped and filled by private_apt

# The first entry of the machine's sources that offers Debian's main component,
# as "FILE:NUMBER RELEASE" (a .list counts lines, a .sources file stanzas).
# Without downloaded lists nobody knows the origin, only that this is Debian.
debian_entry()
{
	# shellcheck disable=SC2016
	local format='$(SOURCESENTRY) $(RELEASE) $(COMPONENT) $(ORIGIN)/$(LABEL)'
	local targets
	targets=$(apt-get indextargets --format "$format" "Created-By: Packages" 2>/dev/null)
	if [ -z "$targets" ] && grep -qs '^ID=debian$' /etc/os-release; then
		targets=$(apt-get --no-release-info indextargets --format "$format" \
			"Created-By: Packages" 2>/dev/null | sed 's| [^ ]*$| Debian/Debian|')
	fi
	awk '$3 == "main" && $4 == "Debian/Debian" { print $1, $2; exit }' <<<"$targets"
}

# private_apt ARCH SUITE...: a fresh private apt for these suites (a SUITE of -
# is the machine's own).  Sets the array APT_OPTIONS; fails if a list cannot be
# fetched, with apt's reason on stderr.
private_apt()
{
	local arch=$1 entry file number own suite
	shift
	entry=$(debian_entry)
	[ -n "$entry" ] || { echo "apt: no Debian mirror in this machine's configuration" >&2; return 1; }
	own=${entry#* } entry=${entry%% *}
	file=${entry%:*} number=${entry##*:}

	rm -rf "$APT_DIR"
	mkdir -p "$APT_DIR/lists/partial" "$APT_DIR/cache/archives/partial" || return 1
	for suite in "${@/#-/$own}"; do
		case $file in
		*.sources)
			awk -v RS= -v n="$number" '/(^|\n)[A-Za-z-]+:/ && ++i == n' "$file" |
				grep -v '^#' |
				sed -E "s/^(Types):.*/\1: deb/I; s/^(Components):.*/\1: main/I
					s/^(Suites):.*/\1: $suite/I; /^Architectures:/Id"
			echo ;;
		*)	# deb [options] uri suite components
			sed -nE "${number}s/^[[:space:]]*(deb[[:space:]]+(\[[^]]*\][[:space:]]+)?[^[:space:]]+).*/\1 $suite main/p" "$file" |
				sed -E "s/arch=[^] ]+/arch=$arch/" ;;
		esac
	done > "$APT_DIR/debian.${file##*.}" || return 1

	APT_OPTIONS=(-qq
		-o "Dir::Etc::sourcelist=$APT_DIR/debian.${file##*.}" -o Dir::Etc::sourceparts=/dev/null
		-o "Dir::State::Lists=$APT_DIR/lists" -o "Dir::Cache=$APT_DIR/cache"
		-o "APT::Architecture=$arch" -o "APT::Architectures::=$arch"
		-o APT::Sandbox::User=root -o APT::Update::Error-Mode=any
		-o Acquire::Languages=none -o Acquire::http::Timeout=20 -o Acquire::Retries=1)
	apt-get "${APT_OPTIONS[@]}" update >&2
}
